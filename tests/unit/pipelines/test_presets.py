"""Presets: each is loaded, checked, explained line by line, and what its processes would get is what it says."""

import tomllib

import pytest

from pipelines.presets import load_preset, preset_layer, preset_names
from schemas.checks import check
from schemas.config import from_layers
from schemas.errors import ConfigError

RANKS = {"gpu-8": 4}


def test_there_are_those_that_the_help_names():
    assert preset_names() == ["cpu-small", "demo", "gpu-1", "gpu-8", "live-feedback"]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_valid_and_its_numbers_fit_together(name):
    config = from_layers([preset_layer(name)], name)
    assert [each for each in check(config, RANKS.get(name, 1)) if each.verdict != "ok"] == []


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_begins_with_what_it_is_for_and_says_nothing_that_is_so_anyway(name):
    text = preset_layer(name).text
    assert text.startswith("# ")
    lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
    assert sum("#" in line for line in lines) >= len(lines) / 3
    assert load_preset(name) == tomllib.loads(text)


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(ConfigError, match="no preset 'gpu1'; did you mean gpu-1"):
        preset_layer("gpu1")
