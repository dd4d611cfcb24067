"""Which rows are held out where a data set comes as one file: one text of five, by a hash of it.

The rule needs no list and no seed: the same text is held out on every machine, wherever it stands in its file.
"""

from hashlib import sha256
from typing import Final

_PARTS: Final = 5


def is_held_out(text: str) -> bool:
    """Whether the first eight bytes of the text's SHA-256, as a big-endian number, are a multiple of five."""
    digest = sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % _PARTS == 0
