"""Secrets stay where they are: a configuration only says where, and a process looks there when it connects.

    "{env:KAFKA_PASSWORD}"             an environment variable of the process that reads it
    "{file:/run/secrets/kafka}"        a file on its machine, without the line's end

The reference is what travels: into the resolved copy of a run, its report and the pipelines on other machines. What it
stands for is nowhere but in the memory of the process.
"""

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
_revealed: dict[str, str] = {}
"""What references of this process's configuration stood for last, by reference."""


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
    _revealed[value] = _REFERENCE.sub(lambda found: _look_up(key, found[1], found[2]), value)
    return _revealed[value]


def without_secrets(text: str) -> str:
    """What somebody else said, for logs and topics: what this process has revealed is hidden in it.

    A server may repeat the headers of a request, and so its key. Hide before you cut: half a key is one too.
    """
    for secret in sorted(map(str.strip, tuple(_revealed.values())), key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, _HIDDEN)
    return text


def _look_up(key: str, kind: str, where: str) -> str:
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
