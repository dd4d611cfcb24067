"""The environments that come with the project, and their registry."""

from pathlib import Path

import pytest

from schemas.config import EnvironmentsConfig
from schemas.errors import ConfigError, RecordError
from schemas.prompts import EnvironmentSpec
from transforms.environments import registry
from transforms.environments.calculator import Calculator, Problem, calculate
from transforms.environments.guess_number import GuessNumber, Secret
from transforms.environments.registry import Answer, Environment, Step, environment

registry.load()


async def play(made, arguments, *texts):
    """The steps that answers get."""
    await made.reset(arguments)
    return [await made.step(Answer(turn=turn, text=text, token_ids=())) for turn, text in enumerate(texts, 1)]


def said(step):
    return [(message.role, message.content) for message in step.messages]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("17*23", "391"), (" (1 + 2)*3 - .5 ", "8.5"), ("-7/2", "-3.5"), ("7//2", "3"),
        ("-7 % 3", "2"), ("2**-2", "0.25"),
        ("1/3", "0.333333333333"), ("-1/3", "-0.333333333333"), ("0.1+0.2", "0.3"),
        ("2**100", str(2**100)), ("1e5", "100000"),
        ("1/0", "error: division by zero"), ("0**-1", "error: division by zero"), ("5 % 0", "error: division by zero"),
        ("2**100000", "error: too large"), ("9**9**9**9", "error: too large"), ("1e999", "error: too large"),
        ("*".join(["9999999999999999**9"] * 3), "error: too large"), ("(-1)**999999999", "error: too large"),
        ("2**0.5", "error: only whole exponents"), ("1 +", "error: not an expression"),
        ("", "error: not an expression"),
        ("1\x00", "error: not an expression"), ("(" * 150, "error: not an expression"),
        ("1+" * 100 + "1", "error: longer than 200 characters"),
        *((bad, "error: only numbers, + - * / // % ** and brackets") for bad in (
            "x", "True", "1j", "'a'*3", "__import__('os').getpid()", "[1][0]", "1 if 1 else 2", "1 << 9", "(1).real",
            "1,000",
        )),
    ],
)  # fmt: skip
def test_the_calculator_computes_exactly_and_nothing_else(expression, value):
    assert calculate(expression) == value


async def test_a_turn_with_an_expression_gets_its_result_and_one_without_is_the_final_answer():
    texts = ("first <calc>1+1</calc> then <calc>17*23</calc>", "<calc>1/0</calc>", "It is 391.")
    first, second, last = await play(Calculator(), Problem(answer="391", role="tool"), *texts)
    assert said(first) == [("tool", "391")]
    assert said(second) == [("tool", "error: division by zero")]
    assert [(step.done, step.reward) for step in (first, second, last)] == [(False, 0.0), (False, 0.0), (True, 1.0)]
    (wrong,) = await play(Calculator(), Problem(answer="391"), "It is 390.")
    assert (wrong.done, wrong.reward) == (True, 0.0)
    (default,) = await play(Calculator(), Problem(answer="391"), "<calc>2</calc>")
    assert said(default) == [("user", "2")]


async def test_guesses_are_told_where_to_look():
    texts = ("is it 50?", "25", "no idea", "900", "-3", "30 or 42")
    steps = await play(GuessNumber(), Secret(secret=42, step_cost=0.125), *texts)
    bounds = "guess a number from 1 to 100"
    assert [step.messages[0].content for step in steps[:-1]] == ["lower", "higher", bounds, bounds, bounds]
    assert [step.reward for step in steps] == [-0.125] * 5 + [1.0]
    assert [step.done for step in steps] == [False] * 5 + [True]


@pytest.mark.parametrize("arguments", [{}, {"secret": 101}, {"secret": 5, "low": 6}, {"secret": 5, "more": 1}])
def test_wrong_arguments_are_found_when_the_prompt_arrives(arguments):
    with pytest.raises(RecordError) as caught:
        registry.check(EnvironmentSpec(name="guess_number", args=arguments))
    assert caught.value.reason == "bad_environment_arguments"


def test_an_unknown_environment_names_the_nearest_one():
    with pytest.raises(RecordError, match="did you mean 'calculator'") as caught:
        registry.check(EnvironmentSpec(name="calculater"))
    assert caught.value.reason == "unknown_environment"


def test_a_name_is_given_once_and_arguments_are_typed():
    class Nobody(Environment):
        async def reset(self, arguments: Secret): ...

        async def step(self, answer): ...

    class Untyped(Nobody):
        async def reset(self, arguments): ...

    with pytest.raises(ConfigError, match="registered twice"):
        environment("guess_number")(Nobody)
    with pytest.raises(ConfigError, match="pydantic model M"):
        environment("untyped")(Untyped)


def test_a_module_that_cannot_be_imported_is_named_with_its_key():
    with pytest.raises(ConfigError, match=r"rollout\.environments\.modules names no_such_module"):
        registry.load(EnvironmentsConfig(modules=("no_such_module",)))


@pytest.mark.parametrize("given", [{}, {"reward": 1.0}, {"done": True, "reward": 1e31}, {"done": True, "more": 1}])
def test_a_step_that_says_nothing_or_too_much_is_refused(given):
    with pytest.raises(ValueError, match=r"neither done|reward|more"):
        Step(**given)


async def test_the_example_of_the_documentation_works():
    page = (Path(__file__).parents[4] / "docs" / "environments.md").read_text()
    names = {"__name__": __name__}
    exec(page.split("```python\n")[1].split("```")[0], names)
    registry.check(EnvironmentSpec(name="parrot", args={"word": "hi"}))
    first, last = await play(names["Parrot"](), names["Word"](word="hi"), "ho", "hi")
    assert (said(first), first.reward) == ([("user", "say hi")], 0.0)
    assert (last.done, last.reward) == (True, 1.0)
