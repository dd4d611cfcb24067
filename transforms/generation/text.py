"""Token ids to text while they come, for people who read along."""

from collections.abc import Callable, Sequence
from typing import Final

_UNFINISHED: Final = "\ufffd"
"""What the bytes of a character decode to before its last token has come."""


class TextStream:
    """Text of tokens as soon as it is certain.

    A character may take several tokens, and a word may lose its leading space where decoding starts anew: so each
    piece is what the tokens since the last but one piece add to those of the last.

    Args:
        decode: token ids to text, without special tokens.
        stops: texts at which the answer ends; they and what follows them are not shown.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stops: Sequence[str] = ()) -> None:
        self._decode, self._stops = decode, tuple(stop for stop in stops if stop)
        self._token_ids: list[int] = []
        self._settled, self._read = 0, 0
        self._held = ""
        self._stopped = False

    def feed(self, token_ids: Sequence[int]) -> str:
        """What can be shown after these; may be empty."""
        self._token_ids += token_ids
        piece = self._next_piece()
        if piece.endswith(_UNFINISHED):
            return ""
        self._settled, self._read = self._read, len(self._token_ids)
        return self._before_stop(piece)

    def finish(self) -> str:
        """What is left when no token follows."""
        shown = self._before_stop(self._next_piece())
        self._read = len(self._token_ids)
        held, self._held = self._held, ""
        return shown if self._stopped else shown + held

    def _next_piece(self) -> str:
        before = self._decode(self._token_ids[self._settled : self._read])
        return self._decode(self._token_ids[self._settled :])[len(before) :]

    def _before_stop(self, piece: str) -> str:
        """Holds back what may become a stop text."""
        if self._stopped:
            return ""
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self._stopped, self._held = True, ""
            return text[: min(found)]
        kept = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are a beginning of ``stop``."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
