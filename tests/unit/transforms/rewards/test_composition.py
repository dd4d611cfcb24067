"""Rewards made of others, and those that look at how an answer is given."""

from dataclasses import replace

import pytest

from schemas.errors import RecordError
from schemas.prompts import RewardSpec
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.format import Form, has_format
from transforms.rewards.length import Lengths, length
from transforms.rewards.registry import Arguments, Reward, reward
from transforms.rewards.scoring import SampleScore, score_samples, to_score
from transforms.rewards.weighted import Parts, weighted

registry.load()


class Nothing(Arguments):
    """No arguments."""


@reward("never_scores")
def never_scores(sample, arguments: Nothing) -> Reward:
    raise ValueError("cannot say")


def answering(text, tokens=3):
    return replace(SAMPLE, response_text=text, response_token_ids=(7,) * tokens)


def part(name, weight=1.0, **args):
    return {"name": name, "args": args, "weight": weight}


def test_weighted_adds_what_its_parts_are_worth():
    arguments = Parts(of=[part("last_number", 0.75, answer=5), part("length", 0.25, short_tokens=2, long_tokens=6)])
    scored = weighted(answering("it is 5", tokens=4), arguments)
    assert scored == Reward(0.75 + 0.25 * 0.5, {"last_number": 1.0, "length": 0.5})


def test_a_weight_below_0_takes_away():
    arguments = Parts(of=[part("exact_match", answer="yes"), part("format", -0.5, pattern=".*!")])
    assert weighted(answering("yes"), arguments).value == 1
    assert weighted(answering("yes!"), arguments).value == -0.5


def test_parts_of_one_name_are_told_apart():
    arguments = Parts(of=[part("format", pattern="a.*"), part("format", pattern=".*b")])
    assert weighted(answering("ax"), arguments).parts == {"format-1": 1.0, "format-2": 0.0}


def test_the_parts_of_a_part_are_behind_its_name():
    asked = {"instructions": [{"name": "punctuation:no_comma", "args": {}}]}
    parts = weighted(answering("no"), Parts(of=[part("instructions", **asked)])).parts
    assert parts["instructions"] == 1
    assert parts["instructions/all"] == 1


def test_a_part_without_a_number_leaves_none():
    spec = RewardSpec(name="weighted", args={"of": [part("exact_match", answer="5"), part("never_scores")]})
    (score,) = score_samples(spec, [answering("5")])
    assert score.value is None
    assert score.error == "reward_error: ValueError: cannot say"


def test_a_part_may_be_called_value_and_is_not_the_reward():
    assert to_score(Reward(0.5, {"value": 1.0})) == SampleScore(0.5, {"value": 1.0}, None)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "at least 1"),
        ([part("lenght")], "did you mean 'length'"),
        ([part("length", short_tokens=4, long_tokens=4)], "expected least <= short < long"),
        ([part("exact_match", weight=float("nan"), answer="5")], "finite"),
        ([part("feedback")], "cannot be a part"),
        ([part("weighted", of=[part("exact_match", answer="5")])], "cannot be a part"),
        ([part("exact_match", answer="5")] * 17, "at most 16"),
    ],
)
def test_weighted_refuses_parts_that_could_not_be_scored(parts, said):
    with pytest.raises(RecordError, match=said) as refused:
        registry.check(RewardSpec(name="weighted", args={"of": parts}))
    assert refused.value.reason == "bad_reward_arguments"


@pytest.mark.parametrize(
    ("tokens", "value"), [(0, 0.0), (1, 0.0), (2, 1.0), (4, 1.0), (5, 0.75), (7, 0.25), (8, 0.0), (99, 0.0)]
)
def test_length_falls_from_short_to_long(tokens, value):
    assert length(answering("", tokens), Lengths(least_tokens=2, short_tokens=4, long_tokens=8)).value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>a\nb</think>\n<answer>5</answer>\n", 1.0),
        ("<answer>5</answer>", 0.0),
        ("Well. <think>a</think><answer>5</answer>", 0.0),
        ("<THINK>a</THINK><answer>5</answer>", 0.0),
    ],
)
def test_format_looks_at_the_whole_answer(text, value):
    form = Form(pattern=r"<think>.*</think>\s*<answer>.*</answer>")
    assert has_format(answering(text), form).value == value


def test_format_can_ignore_case():
    assert has_format(answering("YES"), Form(pattern="yes|no", ignore_case=True)).value == 1


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(RecordError, match="not a regular expression"):
        registry.check(RewardSpec(name="format", args={"pattern": "(a"}))
