"""The tokenizer of a run's model, to show token ids as text where it lies on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from schemas.config import RunConfig


class Decoder(Protocol):
    """What is needed of a tokenizer: that of the package ``tokenizers``."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of token ids."""


def load_decoder(config: RunConfig) -> Decoder | None:
    """The tokenizer of ``model.path``; null where there is none that can be read."""
    file = Path(config.model.path) / "tokenizer.json"
    if not config.model.path or not file.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        decoder: Decoder = Tokenizer.from_file(str(file))
    except Exception:  # noqa: BLE001 - tokenizers raises nothing more special
        return None
    return decoder
