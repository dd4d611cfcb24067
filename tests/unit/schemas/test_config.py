"""Configuration: unknown keys, wrong values and contradictions are named."""

from pathlib import Path
from typing import get_args

import pytest

from schemas.config import KafkaConfig, RunConfig, load, validate
from schemas.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs"
JUDGE = {"url": "http://127.0.0.1:8001", "model": "m"}
NO_RUNS = {"results", "plans"}
GIVEN = [file for file in sorted(DOCS.rglob("*.toml")) if not {*file.relative_to(DOCS).parts} & NO_RUNS]


@pytest.mark.parametrize("file", GIVEN, ids=lambda file: str(file.relative_to(DOCS)))
def test_the_configurations_of_the_documentation_are_valid(file):
    load(file)


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"learner": {"step": 3}}, "unknown key learner.step; did you mean steps?"),
        ({"lerner": {}}, "unknown key lerner; did you mean learner?"),
        ({"learner": {"max_staleness": -1}}, "learner.max_staleness = -1"),
        ({"name": "a b"}, "name = 'a b'"),
        ({"rollout": {"shares": 3}}, "rollout.shares = 3 exceeds kafka.partitions = 2"),
        ({"rollout": {"workers": [], "discover": False}}, "rollout.workers is empty and rollout.discover is false"),
        ({"worker": {"advertise": "gpu-7:8000"}}, "worker.advertise = 'gpu-7:8000'"),
        ({"rollout": {"group_size": 65}}, "rollout.group_size = 65 exceeds worker.max_num_seqs = 64"),
        ({"rollout": {"sampling": {"temprature": 1}}}, "did you mean temperature?"),
        (
            {"rewards": {"judges": {"a": {**JUDGE, "max_token": 3}}}},
            "unknown key rewards.judges.a.max_token; did you mean max_tokens",
        ),
        ({"rewards": {"judges": {"a b": JUDGE}}}, "rewards.judges.a b"),
        (
            {"kafka": {"client": {"retries": [3]}}},
            "kafka.client.retries = [3]: Input should be a valid string, or input should be a valid integer, or input",
        ),
        ({"kafka": {"request_timeout_s": 540}}, "kafka.request_timeout_s = 540: Input should be less than 540"),
        ({"kafka": {"request_timeout_s": 0.05}}, "kafka.request_timeout_s = 0.05: Input should be greater than 0.05"),
        ({"learner": {"objective": {"name": "grpoo"}}}, "'grpoo': Input should be 'grpo'"),
        ({"learner": {"objective": {"aggregation": "tokenmean"}}}, "did you mean token_mean?"),
        (
            {"rollout": {"max_tokens": 3}},
            "did you mean rollout.sampling.max_tokens or rollout.environments.max_tokens or",
        ),
        ({"rewards": {"judges": {"a": {"url": "http://h"}}}}, "rewards.judges.a.model"),
        ({"rewards": {"judges": {"a": {**JUDGE, "url": "file:///etc/passwd"}}}}, "rewards.judges.a.url = 'file:"),
        ({"rewards": {"judges": {"a": {**JUDGE, "patience_s": 9}}}}, "patience_s = 9 is less than timeout_s = 60"),
    ],
)
def test_a_wrong_key_or_value_is_named(tree, words):
    with pytest.raises(ConfigError, match=r"file\.toml") as caught:
        validate(tree, "file.toml")
    assert words in str(caught.value)


def test_a_file_that_is_missing_or_not_toml_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(ConfigError, match="not TOML"):
        load(tmp_path / "bad.toml")


def test_every_field_says_what_it_is():
    def check(model):
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                check(field.annotation)
                continue
            assert field.description, f"{model.__name__}.{name} has no docstring"
            for section in get_args(field.annotation):  # of a table of sections
                if hasattr(section, "model_fields"):
                    check(section)

    check(RunConfig)


def test_a_token_may_not_be_older_than_admission_lets_a_sample_be():
    with pytest.raises(ConfigError, match="max_token_staleness = 2 exceeds max_staleness = 1"):
        validate({"learner": {"max_staleness": 1, "max_token_staleness": 2}}, "test")
    assert (
        validate({"learner": {"max_staleness": 2, "max_token_staleness": 2}}, "test").learner.max_token_staleness == 2
    )


@pytest.mark.parametrize("request_timeout_s", [0.051, 539.9])
def test_consumers_take_every_request_timeout_that_the_configuration_does(request_timeout_s):
    from kafka import KafkaConsumer

    options = KafkaConfig(request_timeout_s=request_timeout_s).consumer_options()
    KafkaConsumer(**options, api_version=(4, 0)).close()  # asks nobody
