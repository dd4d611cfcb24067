"""Secrets stay where they are: a configuration only says where, and a process looks there when it connects.

    "{env:KAFKA_PASSWORD}"             an environment variable of the process that reads it
    "{file:/run/secrets/kafka}"        a file on its machine, without the line's end

The reference is what travels: into the resolved copy of a run, its report and the pipelines on other machines. What it
stands for is nowhere but in the memory of the process.
"""

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from schemas.errors import ConfigError

_REFERENCE: Final = re.compile(r"\{(env|file):([^{}]+)\}")
_REFERENCES: Final = re.compile(rf"({_REFERENCE.pattern})+")
_SECRET: Final = re.compile(r"password|secret|(^|[_-])token$|credential|(api|access|private)[_-]?key", re.IGNORECASE)
_HIDDEN: Final = "***"
_SHORTEST: Final = 4
"""Characters. What is shorter would be found in every other word, and is no secret anyhow."""
_MOST: Final = 64
"""Secrets that are remembered: those of a few dozen keys, and of each the last ones where it is renewed."""
_hidden: dict[str, int] = {}
"""Secrets that this process has looked up, and when: the higher, the later."""
_clock: Final = itertools.count()


def is_secret(key: str) -> bool:
    """Whether a key, by its name, holds what nobody should see. Example: ``sasl_plain_password``."""
    return bool(_SECRET.search(key))


def is_reference(value: object) -> bool:
    """Whether a value says where a secret is, instead of holding it."""
    return isinstance(value, str) and bool(_REFERENCE.search(value))


def holds_only_references(value: object) -> bool:
    """Whether a value says where all of a secret is. Example: ``{env:USER_PART}{file:/run/secrets/rest}``."""
    return isinstance(value, str) and bool(_REFERENCES.fullmatch(value))


def reveal(key: str, value: Any) -> Any:
    """The value with what its references stand for; unchanged where it has none.

    Args:
        key: for messages.
        value: any; only texts hold references.

    Raises:
        ConfigError: a variable is not set, or a file cannot be read.
    """
    if not is_reference(value):
        return value
    revealed = _REFERENCE.sub(lambda found: _look_up(key, found[1], found[2]), value)
    return hide(revealed) if is_secret(key) else revealed


def hide(secret: str) -> str:
    """Has :func:`without_secrets` hide it from now on; returns it. For what no reference under a secret's key names.

    A secret that is renewed stays hidden: requests with the old one are still on their way.
    """
    _hidden[secret.strip()] = next(_clock)
    while len(_hidden) > _MOST:
        oldest, _ = min(tuple(_hidden.items()), key=lambda item: item[1])
        _hidden.pop(oldest, None)
    return secret


def without_secrets(text: str) -> str:
    """What somebody else said, for logs and topics: the secrets that this process has looked up are hidden in it.

    A server may repeat the headers of a request, and so its key. Hide before you cut: half a key is one too.
    """
    for secret in sorted(_hidden, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, _HIDDEN)
    return text


def _look_up(key: str, kind: str, where: str) -> str:
    """A part of a secret is one, too: a server may cut what it repeats."""
    found = _read(key, kind, where)
    return hide(found) if is_secret(key) else found


def _read(key: str, kind: str, where: str) -> str:
    if kind == "env":
        if where not in os.environ:
            raise ConfigError(f"{key}: the environment variable {where} is not set; set it where this process starts")
        return os.environ[where]
    try:
        return Path(where).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{key}: the file {where} cannot be read ({error}); give one that this user can read"
        ) from error


def masked(value: Any, key: str = "") -> Any:
    """The value for people to see: what a secret's key holds is hidden, references are shown."""
    if isinstance(value, Mapping):
        return {name: masked(each, str(name)) for name, each in value.items()}
    hides = is_secret(key) and isinstance(value, str) and value and not holds_only_references(value)
    return _HIDDEN if hides else value
