"""What can be wrong with a prompt is found before an engine is asked."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pipelines.local.tiny_model import build_tiny_model
from schemas.config import RolloutConfig, SamplingConfig
from schemas.errors import ModelError, RecordError
from schemas.identity import GroupId
from schemas.prompts import Prompt, Sampling
from transforms.generation.request import PromptRecord, prepare, sampling_params
from transforms.generation.tokenizer import Tokenizer
from transforms.rewards import registry

registry.load()
REWARD = {"name": "last_number", "args": {"answer": "5"}}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.load(str(build_tiny_model(tmp_path_factory.mktemp("model"))))


def record(value):
    value = value if isinstance(value, bytes) or value is None else json.dumps(value).encode()
    return PromptRecord(GroupId(0, 7), value, datetime(2026, 1, 31, tzinfo=UTC))


def test_a_prompt_becomes_a_request(tokenizer):
    value = {"messages": [{"role": "user", "content": "2+3"}], "reward": REWARD, "sampling": {"temperature": 0.5}}
    request = prepare(record(value), RolloutConfig(group_size=4), tokenizer, min_version=3)
    assert tokenizer.decode([request.token_ids]) == ["2+3"]
    assert request.token_ids[0] == 3, "the template's user mark"
    assert request.token_ids[-1] == 4, "the template's generation prompt"
    assert request.min_version == 3
    assert request.body()["sampling_params"] == {
        "n": 4, "logprobs": 0, "detokenize": False, "temperature": 0.5, "top_p": 1.0, "top_k": -1, "max_tokens": 256,
    }  # fmt: skip


def test_the_engine_makes_text_only_to_find_stop_strings(tokenizer):
    asked = record({"text": "1", "reward": REWARD, "sampling": {"stop": ["."]}})
    assert prepare(asked, RolloutConfig(), tokenizer).body()["sampling_params"]["detokenize"] is True
    without = record({"text": "1", "reward": REWARD, "sampling": {"stop": []}})
    assert prepare(without, RolloutConfig(), tokenizer).body()["sampling_params"]["detokenize"] is False


def test_an_answer_held_to_choices_has_room_for_the_longest_and_nothing_that_could_cut_it(tokenizer):
    sampling = {"stop": ["e"], "min_tokens": 4, "max_tokens": 5}
    asked = record({"text": "1", "reward": REWARD, "sampling": sampling})
    held = prepare(replace(asked, choices=("no", "später")), RolloutConfig(), tokenizer)
    assert held.body()["sampling_params"] == {
        "n": 8, "logprobs": 0, "detokenize": False, "temperature": 1.0, "top_p": 1.0, "top_k": -1,
        "max_tokens": 8, "structured_outputs": {"choice": ["no", "später"]},
    }  # fmt: skip
    assert prepare(asked, RolloutConfig(), tokenizer).body()["sampling_params"].keys() >= sampling.keys()


def test_token_ids_are_sent_as_they_are(tokenizer):
    assert prepare(record({"token_ids": [7, 8], "reward": REWARD}), RolloutConfig(), tokenizer).token_ids == (7, 8)


def test_the_prompt_says_its_group_size(tokenizer):
    asked = record({"text": "1", "reward": REWARD, "group_size": 3})
    assert prepare(asked, RolloutConfig(group_size=8), tokenizer).group_size == 3


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("value", "reason", "detail"),
    [
        (b"not json", "not_json", "not json"),
        (b"\xff\xfe", "not_json", ""),
        (None, "bad_record", "null"),
        ({"text": "1"}, "bad_record", "reward"),
        ({"text": "1", "reward": {"name": "last_numbr"}}, "unknown_reward", "did you mean 'last_number'"),
        ({"text": "1", "reward": {"name": "last_number"}}, "bad_reward_arguments", "answer"),
        ({"text": "x" * (10 << 20), "reward": REWARD}, "too_large", "1048576"),
        ({"token_ids": [5, 999_999], "reward": REWARD}, "bad_token", "999999 is beyond"),
        ({"token_ids": [-1], "reward": REWARD}, "bad_record", "token_ids"),
        ({"text": "1", "reward": REWARD, "group_size": 10**9}, "bad_record", "group_size"),
        ({"text": "1", "reward": REWARD, "sampling": {"temperature": 0}}, "bad_record", "temperature"),
        ({"text": "1", "token_ids": [5], "reward": REWARD}, "bad_record", "exactly one"),
        (b'{"text": "\\ud800", "reward": {"name": "feedback"}}', "bad_record", ""),
        (b"[" * 100_000, "not_json", ""),
    ],
)
def test_a_bad_prompt_says_what_is_wrong(tokenizer, value, reason, detail):
    with pytest.raises(RecordError) as caught:
        prepare(record(value), RolloutConfig(), tokenizer)
    assert caught.value.reason == reason
    assert detail in caught.value.detail


def test_a_chat_template_that_refuses_is_a_reason(tokenizer):
    class Refusing:
        encode = decode = None

        def apply_chat_template(self, *_, **__):
            raise ValueError("roles must alternate")

    with pytest.raises(RecordError, match="roles must alternate") as caught:
        Tokenizer(Refusing(), 10).encode(
            Prompt.model_validate({"messages": [{"role": "user", "content": "1"}], "reward": REWARD})
        )
    assert caught.value.reason == "bad_text"


def test_sampling_of_the_prompt_wins_over_the_configuration():
    config = RolloutConfig(sampling=SamplingConfig(max_tokens=9, temperature=0.7))
    got = sampling_params(Sampling(max_tokens=3, stop=("\n",)), config)
    assert got == {"temperature": 0.7, "top_p": 1.0, "top_k": -1, "max_tokens": 3, "stop": ["\n"]}


def test_a_directory_without_a_model_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        Tokenizer.load(str(tmp_path))
