"""A held-out file is read whole or not at all."""

import json

import pytest

from pipelines.evaluation.ask import _as_asked, asking_config
from pipelines.evaluation.prompts import check_services, check_usable, load_registries, read_held_out
from schemas.config import RunConfig, validate
from schemas.errors import ConfigError, RecordError
from schemas.prompts import Prompt, RewardSpec, Sampling
from transforms.generation.request import sampling_params

SUM = {"text": "1+1", "reward": {"name": "last_number", "args": {"answer": 2}}}


class Letters:
    """A tokenizer that knows no x."""

    def encode(self, prompt):
        if "x" in prompt.text:
            raise RecordError("bad_text", "there is no x")
        return tuple(map(ord, prompt.text))


def write(tmp_path, *prompts):
    file = tmp_path / "held-out.jsonl"
    file.write_text("\n".join(each if isinstance(each, str) else json.dumps(each) for each in prompts))
    return file


def usable(*prompts):
    load_registries(RunConfig())
    check_usable([Prompt.model_validate(each) for each in prompts], Letters())


def test_prompts_are_read_and_their_hash_tells_sets_apart(tmp_path):
    first = read_held_out(write(tmp_path, SUM, SUM | {"text": "2+2"}))
    again = read_held_out(write(tmp_path, SUM, "", SUM | {"text": "2+2"}))
    other = read_held_out(write(tmp_path, SUM | {"text": "2+2"}, SUM))
    assert [prompt.text for prompt in first.prompts] == ["1+1", "2+2"]
    assert first.sha256 == again.sha256 != other.sha256


def test_a_judge_that_is_not_configured_is_told_before_anything_is_asked():
    load_registries(RunConfig())
    asking = {"text": "1", "reward": {"name": "judge", "args": {"judges": ["strict"], "rubric": "Is it right?"}}}
    prompts = [Prompt.model_validate(each) for each in (SUM, asking)]
    with pytest.raises(ConfigError, match=r"prompt 2: .*rewards\.judges has no 'strict'"):
        check_services(RunConfig(), prompts)
    judges = {"strict": {"url": "http://127.0.0.1:1", "model": "m"}}
    check_services(RunConfig.model_validate({"rewards": {"judges": judges}}), prompts)


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ((SUM, '{"text": '), "prompt 2: not_json"),
        ((SUM, SUM, {"text": "1"}), "prompt 3: bad_record"),
        ((), "no prompts"),
    ],
)
def test_one_bad_line_refuses_the_file_and_is_named(tmp_path, lines, told):
    with pytest.raises(ConfigError, match=told):
        read_held_out(write(tmp_path, *lines))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"reward": {"name": "last_numbr", "args": {}}}, "did you mean 'last_number'"),
        ({"reward": {"name": "last_number", "args": {}}}, "bad_reward_arguments"),
        ({"reward": {"name": "feedback"}}, "people reward its answers"),
        ({"text": "x"}, "there is no x"),
        (
            {"text": None, "messages": [{"role": "user", "content": "1"}], "environment": {"name": "guess_numbers"}},
            "guess_numbers",
        ),
    ],
)
def test_a_prompt_that_could_not_be_scored_or_asked_is_named_before_anything_is_asked(changes, told):
    usable(SUM)
    with pytest.raises(ConfigError, match=rf"held-out prompt 2 \(b\).*{told}"):
        usable(SUM, SUM | {"prompt_id": "b"} | changes)


def test_how_answers_are_drawn_is_the_evaluations_and_what_bounds_them_is_the_prompts():
    config = RunConfig()
    given = Sampling(temperature=0.7, top_p=0.9, top_k=5, max_tokens=12, stop=(".",))
    prompt = Prompt(text="1", group_size=64, sampling=given, reward=RewardSpec(name="last_number"))
    asked = _as_asked(prompt, 4, None)
    assert asked.group_size == 4
    greedy = sampling_params(asked.sampling, asking_config(config, 0.0).rollout)
    assert greedy == {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "max_tokens": 12, "stop": ["."]}
    assert sampling_params(_as_asked(prompt, 4, 99).sampling, config.rollout)["max_tokens"] == 99


def test_workers_of_evaluations_alone_are_only_discovered_and_by_their_own_name():
    config = asking_config(validate({"name": "demo", "evaluation": {"worker_run": "demo-eval"}}, "test"), 1.0)
    assert (config.topics.workers, config.rollout.workers, config.rollout.discover) == ("demo-eval.workers", (), True)


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"samples": 4, "pass_at": [1, 8]}, "pass_at holds 8, but samples = 4"),
        ({"samples": 65}, "evaluation.samples = 65 exceeds worker.max_num_seqs = 64"),
        ({"worker_run": "demo"}, "is the run itself"),
        ({"name": "a/b"}, "evaluation.name"),
    ],
)
def test_settings_that_cannot_work_are_refused(section, told):
    with pytest.raises(ConfigError, match=told):
        validate({"name": "demo", "evaluation": section}, "test")
