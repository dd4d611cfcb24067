"""The reward of countdown: right expressions in whatever form they are answered, and hostile ones."""

import time
from dataclasses import replace

import pytest

from schemas.errors import RecordError
from schemas.prompts import RewardSpec
from tests.support.samples import SAMPLE
from transforms.rewards import registry
from transforms.rewards.countdown import Numbers, countdown

registry.load()
GIVEN = Numbers(numbers=(53, 48, 2, 2), target=100)


def score(text, arguments=GIVEN):
    return countdown(replace(SAMPLE, response_text=text), arguments).value


@pytest.mark.parametrize(
    "text",
    [
        "53 + 48 - 2/2",
        "First I add them.\n\n53 + 48 - 2/2\n",
        "Answer: 53+48-2/2 = 100",
        "The expression is: `(53 + 48) - (2 ÷ 2)`.",
        "$$-2/2+[53+48]$$",
        "**48 + 53 - 2 / 2**",
        "(48+2)*2",
    ],
)
def test_an_expression_that_makes_the_target_is_right(text):
    assert score(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "I do not know",
        "53 + 48 - 1",
        "53 + 48 - 2/2/1",
        "48*2 + 2*2",
        "53 + 48",
        "53 + 48 - 2/2\nor not",
        "53 + 48 - 2//2",
        "53 + 48 - 2/(2-2)",
        f"53 +{' ' * 200}48 - 2/2",
        "53 + 48 - +2/2",
        "100 = 53 + 48 - 2/2",
        "53 48 + 2/2 -",
        "53 + 48 - 2(2)",
        "(53 + 48 - 2/2",
        "lambda: 53 + 48 - 2/2 if x else 0",
        "5_3 + 48 - 2/2",
        "53.0 + 48 - 2/2",
        "٥٣ + 48 - 2/2",
    ],
)
def test_what_is_no_such_expression_is_wrong(text):
    assert score(text) == 0.0


def test_a_number_counts_as_often_as_it_is_given():
    assert score("2*2*25", Numbers(numbers=(2, 2, 25), target=100)) == 1.0
    assert score("2*2*25", Numbers(numbers=(2, 25, 7), target=100)) == 0.0


def test_division_is_exact():
    assert score("(1/3)*3", Numbers(numbers=(1, 3, 3), target=1)) == 1.0
    assert score("9007199254740993/1", Numbers(numbers=(9007199254740993, 1), target=9007199254740992)) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9**9",
        "2**2**2**53",
        "(" * 100_000 + "53" + ")" * 100_000,
        "(" * 99 + "53" + ")" * 99,
        "-" * 190 + "53",
        "1" * 1_000_000,
        "9*" * 95 + "9",
        "53+" * 1_000_000 + "48",
        "53 + 48 - 2/2" + "\n" * 1_000_000 + "x",
        ":" * 1_000_000,
        "__import__('os').system('true')",
        "\x00",
        "53 + \ud800",
    ],
)
@pytest.mark.timed
def test_a_hostile_answer_costs_nothing(text):
    begun_s = time.process_time()
    assert score(text) == 0.0
    assert time.process_time() - begun_s < 0.1


@pytest.mark.parametrize("arguments", [{}, {"numbers": [], "target": 1}, {"numbers": ["x"], "target": 1}])
def test_arguments_that_are_no_puzzle_are_refused(arguments):
    with pytest.raises(RecordError, match="countdown"):
        registry.check(RewardSpec(name="countdown", args=arguments))


@pytest.mark.parametrize(("text", "value"), [
    ("53 + 48 - 2/2", 1.0),
    ("53 + 48 + 2 + 2", 0.1),
    ("Answer: 2*48 - 53/2 = 7", 0.1),
    ("53 + 48", 0.0),
    ("53 + 48 + 2 + 2 + 2", 0.0),
    ("53 + 48 + 2 / (2 - 2)", 0.0),
    ("53, 48, 2 and 2", 0.0),
    ("", 0.0),
])  # fmt: skip
def test_an_expression_of_all_numbers_gets_a_little_where_it_is_asked_for(text, value):
    assert score(text, GIVEN.model_copy(update={"form": 0.1})) == value
    assert score(text) == (1.0 if value == 1 else 0.0)
