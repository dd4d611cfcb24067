"""Configurations to start from, as TOML files beside this module.

--preset NAME ──► NAME.toml ──► a layer below the file of --config and the flags
"""

from importlib.resources import files
from typing import Any

from schemas.errors import ConfigError
from schemas.layers import Layer, layer_of
from schemas.suggestions import did_you_mean

_ENDING = ".toml"


def preset_names() -> list[str]:
    """The presets that there are."""
    return sorted(each.name.removesuffix(_ENDING) for each in files(__name__).iterdir() if each.name.endswith(_ENDING))


def preset_layer(name: str) -> Layer:
    """What a preset says. Example: ``preset_layer("demo")``.

    Raises:
        ConfigError: there is no such preset.
    """
    known = preset_names()
    if name not in known:
        raise ConfigError(f"no preset {name[:80]!r}; {did_you_mean(name, known)}")
    return layer_of(f"preset {name}", files(__name__).joinpath(f"{name}{_ENDING}").read_text())


def load_preset(name: str) -> dict[str, Any]:
    """The configuration tree of a preset. Example: ``load_preset("demo")``."""
    return preset_layer(name).tree
