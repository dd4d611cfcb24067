"""Which rows are held out where a data set comes as one file: one of five, by a hash of a text in it.

The rule needs no list and no seed: the same row is held out on every machine. Rows that share a text, a passage or a
question, hang together, directly or through others, and all of them are on the same side.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Final

_PARTS: Final = 5


def held_out(keys: Sequence[Sequence[str]]) -> list[bool]:
    """Whether each row is held out.

    Args:
        keys: of each row its texts that other rows may have as well, at least one.
    """
    first: dict[str, str] = {}
    for texts in keys:
        roots = [_root(first, text) for text in texts]
        first.update(dict.fromkeys(roots, min(roots)))
    return [is_held_out(_root(first, texts[0])) for texts in keys]


def is_held_out(text: str) -> bool:
    """Whether the first eight bytes of the text's SHA-256, as a big-endian number, are a multiple of five."""
    digest = sha256(text.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % _PARTS == 0


def _root(first: dict[str, str], text: str) -> str:
    """The least of all texts that hang together with one, as far as is known; the way there is made shorter."""
    while (next_one := first.setdefault(text, text)) != text:
        first[text] = first[next_one]
        text = next_one
    return text
