"""Size caps of everything that comes from outside, each with its unit and its reason."""

from typing import Final

MAX_PROMPT_BYTES: Final = 1 << 20
"""Longest ``Prompt`` value in bytes. 1 MiB is some 250,000 tokens, beyond any context in use."""

MAX_PROMPTS_MESSAGE_BYTES: Final = 16 << 20
"""``max.message.bytes`` of the prompts topic: larger than the cap, so that a prompt which is too
long becomes a dead letter with a reason and not an error at its producer."""

MAX_GROUP_SIZE: Final = 1024
"""Most samples of one prompt."""

MAX_RESPONSE_TOKENS: Final = 1 << 20
"""Longest response of one sample in tokens; longer rows are refused by the decoder."""

MAX_TRAJECTORY_BYTES: Final = 32 << 20
"""Longest encoded trajectories record in bytes (``max.message.bytes`` of the topic)."""

MAX_DECODED_BYTES: Final = 64 << 20
"""Most memory in bytes that the Arrow buffers of one trajectories record may take (6 kB of zstd can
claim 200 MB). Twice the encoded cap, for writers that compress; the rows as Python objects take more."""

MAX_FEEDBACK_BYTES: Final = 256 << 10
"""Longest ``Feedback`` value in bytes: a corrected text of some 60,000 tokens."""

MAX_SITE_RECORD_BYTES: Final = 8192
"""Longest ``Site`` or ``SiteUpdate`` value in bytes: names, numbers and hashes."""

MAX_DEAD_LETTER_HEAD_BYTES: Final = 4096
"""Bytes of the offending record that a dead letter keeps."""

MAX_OFFSET_METADATA_BYTES: Final = 4096
"""Kafka's default ``offset.metadata.max.bytes``."""
