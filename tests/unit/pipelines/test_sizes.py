"""What a model directory says of itself, and what it takes of memory and disk."""

import json

import pytest

from pipelines.model_facts import read_model
from pipelines.sizes import checkpoint_bytes, gib, kv_token_bytes, learner_bytes, version_bytes
from schemas.config import validate
from schemas.errors import ModelError
from tests.support.models import PARAMETERS, write_model


@pytest.fixture
def model(tmp_path):
    return read_model(write_model(tmp_path / "model"))


def config(**sections):
    return validate(sections, "of the test")


def test_a_model_is_read_from_the_heads_of_its_files(model):
    assert (model.parameters, model.dtypes, model.max_tokens) == (PARAMETERS, ("F32",), 4096)
    assert model.kv_numbers_per_token == 2 * 3 * 2 * 32
    assert model.architecture == "LlamaForCausalLM"


def test_heads_without_own_keys_are_counted_and_compressed_ones_are_not(tmp_path):
    plain = read_model(write_model(tmp_path / "plain", num_key_value_heads=None, head_dim=None))
    assert plain.kv_numbers_per_token == 2 * 3 * 4 * (8 // 4)
    assert read_model(write_model(tmp_path / "mla", kv_lora_rank=16)).kv_numbers_per_token is None


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-4]), "its head says"),
        (lambda file: file.write_bytes(b""), "no safetensors file"),
        (lambda file: file.write_bytes((4).to_bytes(8, "little") + b"what"), "cannot be read"),
        (lambda file: file.with_name("config.json").write_text("{"), "cannot be read"),
    ],
)
def test_a_file_that_is_cut_short_or_none_is_told(tmp_path, spoil, said):
    spoil(write_model(tmp_path / "model") / "model.safetensors")
    with pytest.raises(ModelError, match=said):
        read_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("stage", "ranks", "dtype", "per_parameter"),
    [
        (0, 1, "float32", 4 + 4 + 8),
        (0, 8, "float32", 4 + 4 + 8),
        (0, 1, "bfloat16", 2 + (2 + 4) + (4 + 8)),
        (1, 4, "float32", 4 + 4 + 8 / 4),
        (2, 4, "bfloat16", 2 + (2 + 4) / 4 + (4 + 8) / 4),
        (3, 4, "bfloat16", (2 + 6 + 12) / 4),
    ],
)
def test_zero_divides_optimizer_gradients_and_weights_one_after_the_other(model, stage, ranks, dtype, per_parameter):
    total, formula = learner_bytes(config(learner={"zero_stage": stage}), model, dtype, ranks)
    assert total == PARAMETERS * per_parameter
    assert f"{PARAMETERS:,} parameters" in formula
    assert f"ZeRO {stage}, ranks {ranks}" in formula


def test_of_an_adapter_only_its_numbers_are_trained_kept_and_published(model):
    lora = config(learner={"lora": {"rank": 2, "target_modules": ["q_proj", "up_proj"]}})
    numbers = 2 * (8 + 8) + 2 * (12 + 8)
    assert learner_bytes(lora, model, "float32", 1)[0] == 4 * PARAMETERS + 12 * numbers
    assert version_bytes(lora, model, "bfloat16") == 2 * numbers
    assert checkpoint_bytes(lora, model) == 12 * numbers


def test_versions_are_of_the_run_s_dtype_and_checkpoints_in_full_precision(model):
    assert version_bytes(config(), model, "bfloat16") == 2 * PARAMETERS
    assert checkpoint_bytes(config(), model) == 12 * PARAMETERS
    assert kv_token_bytes(model, "bfloat16") == 2 * 384


def test_the_head_of_a_real_file_agrees_with_the_library(tmp_path):
    from safetensors import safe_open

    from pipelines.model_facts import read_head

    file = write_model(tmp_path / "model") / "model.safetensors"
    head = read_head(file)
    with safe_open(file, "np") as opened:
        assert {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()} == {  # noqa: SIM118
            name: tuple(entry["shape"]) for name, entry in head.items() if name != "__metadata__"
        }
    assert json.dumps(head)


def test_sizes_read_well():
    assert (gib(3 << 29), gib(300_000)) == ("1.50 GiB", "0.29 MiB")
