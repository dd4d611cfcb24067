"""Which rows are held out where a data set comes as one file: one of five, by a hash of a text in it.

The rule needs no list and no seed: the same row is held out on every machine. Rows that share a text, a passage or a
question, hang together, directly or through others, and all of them are on the same side.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

_PARTS: Final = 5
_FIRST_WORDS: Final = 6
_WORD: Final = re.compile(r"[^\W_]+")


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


def plain(text: str) -> str:
    """Letters and digits of a text as words in lower case, by which copies of a row are found."""
    return " ".join(_WORD.findall(text.lower()))


def story(text: str) -> str:
    """The first six words of a text that are in small letters: neither names nor beginnings, and no numbers.

    Collections of word problems tell the same story again with other names, other numbers or another question: by this
    key most of those fall on one side.
    """
    return " ".join([word for word in _WORD.findall(text) if word.islower()][:_FIRST_WORDS])


def _root(first: dict[str, str], text: str) -> str:
    """The least of all texts that hang together with one, as far as is known; the way there is made shorter."""
    while (next_one := first.setdefault(text, text)) != text:
        first[text] = first[next_one]
        text = next_one
    return text
