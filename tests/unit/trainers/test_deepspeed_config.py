"""The user's DeepSpeed JSON and the run's configuration."""

import json

import pytest

from schemas.config import validate
from schemas.errors import ConfigError
from trainers.deepspeed_config import deepspeed_settings, merge


@pytest.fixture
def settings(tmp_path):
    def of(given, dtype="float32", ranks=1, **learner):
        file = tmp_path / "ds.json"
        file.write_text(given if isinstance(given, str) else json.dumps(given))
        tree = {"learner": {"deepspeed": str(file), "groups_per_step": 8, **learner}, "rollout": {"group_size": 4}}
        return deepspeed_settings(validate(tree, "test"), dtype, ranks)

    return of


def test_what_the_run_does_not_decide_goes_to_deepspeed(settings):
    given = {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 4,
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": [0.9, 0.95]}},
        "zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": "auto"},
        "wall_clock_breakdown": True,
    }
    found = settings(given, ranks=2, zero_stage=2)
    assert found["wall_clock_breakdown"] is True
    assert found["zero_optimization"] == {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    assert found["bf16"] == {"enabled": False}
    assert found["train_micro_batch_size_per_gpu"] == 1, "packs are made by tokens"
    assert "optimizer" not in found


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"train_batch_size": 64}, "train_batch_size = 64, but learner.groups_per_step 8 x rollout.group_size 4 = 32"),
        (
            {"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2},
            "4 x 2 x 2 ranks = 16, but learner.groups_per_step 8 x rollout.group_size 4 = 32 samples a step",
        ),
        ({"gradient_clipping": 0.5}, "gradient_clipping = 0.5, but learner.max_grad_norm = 1.0"),
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage = 2, but learner.zero_stage = 0"),
        ({"bf16": {"enabled": True}}, "bf16.enabled = True, but model.dtype in bfloat16 = False"),
        ({"fp16": {"enabled": True}}, "model.dtype"),
        ({"scheduler": {"type": "WarmupLR"}}, "learner.schedule"),
        ({"optimizer": {"type": "Lion"}}, "optimizer.type = Lion, but the optimizer = AdamW"),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1.0}}},
            "optimizer.params.lr = 1.0, but learner.learning_rate",
        ),
        ("[]", "holds a list"),
        ("{", "is not JSON"),
    ],
)
def test_contradictions_are_named_with_both_numbers(settings, given, complaint):
    with pytest.raises(ConfigError) as refused:
        settings(given, ranks=2)
    assert complaint in str(refused.value)


def test_missing_file_is_named():
    with pytest.raises(ConfigError, match="no/such"):
        deepspeed_settings(validate({"learner": {"deepspeed": "no/such.json"}}, "test"), "float32", 1)


def test_merging_goes_section_by_section():
    assert merge({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 4}, "e": 5}) == {"a": {"b": 4, "c": 2}, "d": 3, "e": 5}
