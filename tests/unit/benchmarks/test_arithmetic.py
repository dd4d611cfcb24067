"""The pure functions of tests/benchmarks/arithmetic.py: its puzzles, its controls, and what is told of the stages."""

from dataclasses import replace
from statistics import fmean

import pytest

from schemas.prompts import Prompt, RewardSpec
from tests.benchmarks import arithmetic
from tests.benchmarks.pairs import SHOWN, Pairs
from tests.support.chance_reward import Chance, by_chance
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.countdown import Numbers, makes_target

METRICS = """
asyncflow_rollout_generation_seconds_count 2.0
asyncflow_rollout_generation_seconds_sum 8.0
asyncflow_score_seconds_count 2.0
asyncflow_score_seconds_sum 0.5
asyncflow_score_seconds_created 1.8e9
asyncflow_write_commit_seconds_count{share="0"} 1.0
asyncflow_write_commit_seconds_count{share="1"} 2.0
asyncflow_write_commit_seconds_sum{share="0"} 0.25
asyncflow_write_commit_seconds_sum{share="1"} 0.5
"""


@pytest.fixture(scope="module")
def puzzles():
    """Of both splits, as the reward's arguments."""
    return {
        split: [Numbers.model_validate(prompt.reward.args) for prompt in Pairs().prompts(None, split)]
        for split in ("train", "held_out")
    }


def solutions(puzzle):
    one, other = sorted(puzzle.numbers)
    expressions = (f"{one}", f"{other}", f"{one} + {other}", f"{other} - {one}", f"{one} * {other}", f"{other} / {one}")
    return [each for each in expressions if makes_target(each, puzzle.numbers, puzzle.target)]


def test_no_pair_is_in_both_splits_and_the_solved_one_in_none(puzzles):
    pairs = {split: {tuple(sorted(each.numbers)) for each in found} for split, found in puzzles.items()}
    assert not pairs["train"] & pairs["held_out"]
    assert SHOWN not in pairs["train"] | pairs["held_out"]
    assert len(puzzles["held_out"]) > 200


def test_a_puzzle_is_solved_by_one_operation_on_both_numbers(puzzles):
    found = [solutions(puzzle) for split in puzzles.values() for puzzle in split]
    assert all(len(each) >= 1 and len(each[0].split()) == 3 for each in found)
    assert fmean(len(each) == 1 for each in found) > 0.98  # 6 / 2 is 3, as is 6 - 3


def test_one_rule_gets_a_third_of_the_puzzles():
    assert arithmetic.rules(list(Pairs().prompts(None, "held_out")))["always_the_sum"] == pytest.approx(1 / 3, abs=0.02)


def test_other_tasks_have_no_such_rule():
    prompt = Prompt(text="?", reward=RewardSpec(name="last_number", args={"answer": "5"}))
    assert arithmetic.rules([prompt]) == {}


def test_a_control_asks_the_same_and_rewards_something_else():
    registry.load(["tests.support.chance_reward"])
    prompts = list(Pairs().prompts(None, "train"))
    for control in arithmetic.CONTROLS.values():
        changed = control(prompts, 0)
        assert [each.messages for each in changed] == [each.messages for each in prompts]
        assert fmean(one.reward == other.reward for one, other in zip(changed, prompts, strict=True)) < 0.05
        registry.check(changed[0].reward)


def test_chance_rewards_a_share_whatever_was_answered():
    samples = [replace(SAMPLE, prompt_offset=offset) for offset in range(2000)]
    values = [by_chance(sample, Chance(share=0.25)).value for sample in samples]
    assert fmean(values) == pytest.approx(0.25, abs=0.03)
    assert values == [by_chance(replace(each, response_text="!"), Chance(share=0.25)).value for each in samples]


def test_chance_differs_between_the_answers_to_one_prompt():
    drawn = [by_chance(replace(SAMPLE, sample_index=index), Chance(share=0.5)).value for index in range(64)]
    assert set(drawn) == {0.0, 1.0}


def test_stages_are_read_from_the_metrics_of_all_shares():
    told = arithmetic.timed(METRICS)
    assert told["writing"] == {"count": 3.0, "sum": 0.75}
    assert told["scoring_share"] == 0.5 / 8.0
