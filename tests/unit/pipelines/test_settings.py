"""What a configuration amounts to, where each value came from, and how two differ."""

import tomllib

import pytest

from pipelines.presets import preset_layer, preset_names
from pipelines.settings import chosen, differences, in_toml, named_layers, render, settle
from schemas.config import RunConfig, validate
from schemas.errors import ConfigError
from schemas.layers import layer_of

MINE = layer_of(
    "mine.toml",
    'name = "mine"\n[learner]\nsteps = 7\n[worker.engine_args]\n"odd key" = "x"\n[rollout]\nworkers = []\n'
    '[kafka.client]\nsasl_plain_password = "{env:PW}"\n',
)


def test_every_value_has_its_origin():
    values = settle([preset_layer("demo"), MINE], "mine.toml").values()
    assert values["name"] == ("mine", "mine.toml:1")
    assert values["learner.steps"] == (7, "mine.toml:3")
    assert values["learner.groups_per_step"][1].startswith("preset demo:")
    assert values["learner.zero_stage"] == (0, "default")
    assert values["rollout.workers"] == ([], "mine.toml:7")
    assert values["kafka.client.sasl_plain_password"] == ("{env:PW}", "mine.toml:9")


@pytest.mark.parametrize("layers", [[], [MINE], *([preset_layer(name)] for name in preset_names())])
def test_what_is_shown_can_be_loaded_again(layers):
    settings = settle(layers, "of the test")
    assert validate(tomllib.loads(render(settings.values())), "shown") == settings.config


def test_differences_hold_both_sides():
    one, other = settle([MINE], "mine.toml"), settle([], "defaults")
    found = {each.key: each for each in differences(one, other)}
    assert set(found) == {
        "name", "learner.steps", "worker.engine_args.odd key", "worker.engine_args", "rollout.workers",
        "kafka.client.sasl_plain_password", "kafka.client",
    }  # fmt: skip
    assert found["learner.steps"][1:] == (7, "mine.toml:3", 24, "default")
    assert found["kafka.client.sasl_plain_password"][3:] == (None, "not set")
    assert differences(one, one) == []


def test_keys_and_sections_can_be_chosen_and_misspelt_ones_are_named():
    settings = settle([], "defaults")
    assert list(chosen(settings, ["learner.lora"])) == [
        "learner.lora.rank", "learner.lora.alpha", "learner.lora.target_modules",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"no key 'learner.step'; did you mean learner\.steps"):
        chosen(settings, ["learner.step"])


def test_a_source_is_a_file_a_run_a_preset_or_the_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "config.toml").write_text("seed = 4\n")
    assert named_layers("defaults") == []
    assert [named_layers(name)[0].tree for name in ("demo", "runs/demo", "runs/demo/config.toml")] == [{"seed": 4}] * 3
    assert named_layers("preset:demo")[0].source == named_layers("gpu-1")[0].source.replace("gpu-1", "demo")
    with pytest.raises(ConfigError, match="'dem' is no file, no run and no preset; did you mean demo"):
        named_layers("dem")


def test_values_are_written_on_one_line():
    value = {"a b": [1, "x\ny"], "c": True}
    assert tomllib.loads(f"v = {in_toml(value)}") == {"v": value}
    assert "\n" not in in_toml(value)


def test_the_defaults_are_those_of_the_models():
    assert settle([], "defaults").config == RunConfig()
