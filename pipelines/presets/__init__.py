"""Configurations to start from, as TOML files beside this module."""

import tomllib
from importlib.resources import files
from typing import Any


def load_preset(name: str) -> dict[str, Any]:
    """The configuration tree of a preset. Example: ``load_preset("demo")``."""
    return tomllib.loads(files(__name__).joinpath(f"{name}.toml").read_text())
