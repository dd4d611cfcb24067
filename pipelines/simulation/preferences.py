"""Which answers somebody likes: rules that a program can check, by name.

A rule is a function of the answer's text; adding one takes three lines here.
"""

import re
from collections.abc import Callable
from typing import Final

from schemas.errors import ConfigError
from schemas.suggestions import did_you_mean

Preference = Callable[[str], bool]
_SENTENCE: Final = re.compile(r"[A-Z].*[.!?]", re.DOTALL)


def short(text: str) -> bool:
    """Ten words at most."""
    return 1 <= len(text.split()) <= 10


def wordy(text: str) -> bool:
    """Twelve words or more."""
    return len(text.split()) >= 12


def sentence(text: str) -> bool:
    """Begins with a capital, ends with a full stop or the like, and has five words or more."""
    return _SENTENCE.fullmatch(text.strip()) is not None and len(text.split()) >= 5


def exclaims(text: str) -> bool:
    """Has an exclamation mark."""
    return "!" in text


def lowercase(text: str) -> bool:
    """Has letters, and none of them is a capital."""
    return text.lower() == text != text.upper()


PREFERENCES: Final[dict[str, Preference]] = {
    rule.__name__: rule for rule in (short, wordy, sentence, exclaims, lowercase)
}


def find(name: str) -> Preference:
    """The rule of a name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PREFERENCES:
        raise ConfigError(f"no preference {name!r}; {did_you_mean(name, PREFERENCES)}")
    return PREFERENCES[name]
