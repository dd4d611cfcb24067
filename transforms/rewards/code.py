"""``code``: the share of a prompt's tests that the answer's Python passes, in a sandbox.

    answer ──find──► code ──► sandbox (transforms/rewards/sandbox): loaded in one process, tested by another

Tests run beside the code and not in it. They call it, and get plain data back, so that no object with an ``__eq__`` of
its own, no exit, no print and no change of a builtin makes one pass.
"""

import re
from typing import Annotated, Final

from pydantic import Field

from schemas.prompts import RewardSpec
from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward
from transforms.rewards.sandbox import launch
from transforms.rewards.sandbox.launch import Job

CODE: Final = "code"
"""Its name."""
_FENCE: Final = re.compile(r"^[ \t]*```[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_LONGEST_CHARACTERS: Final = 100_000
"""More is no answer that anyone asked for, and passes nothing."""

Source = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(pattern=r"^[^\W\d]\w*$", max_length=200)]


class UnitTests(Arguments):
    """Example: ``{"tests": ["assert add(1, 2) == 3"], "names": ["add"]}``."""

    tests: tuple[Source, ...] = Field(min_length=1, max_length=100)
    """Statements of Python, each passed if it comes to its end without an exception."""
    names: tuple[Name, ...] = Field(min_length=1, max_length=20)
    """What the tests take from the answer; the first of them it must define."""
    context: Source = ""
    """Code that stands before the answer's; the tests can use it, too. An answer that does not define the first of the
    names goes on where it ends."""
    setup: Source = ""
    """Code that is run after the answer's, such as what builds an object for the tests."""
    partial: bool = False
    """The share of the tests that pass; else 1 for all of them and 0 for fewer."""
    seconds: float = Field(default=3.0, gt=0, le=60)
    """For all tests. Keep it below ``rewards.timeout_s``, or code that hangs gets no reward instead of 0."""


@reward(CODE)
def code(sample: Sample, arguments: UnitTests) -> Reward:
    """1 if the code of the response passes all tests, else 0, or the share that it passes; that is a part in any case.

    Raises:
        RewardFault: there is no sandbox here, or the tests are no Python.
    """
    found = find_code(sample.response_text)
    if not found.strip() or len(found) > _LONGEST_CHARACTERS:
        return Reward(0.0, {"passed": 0.0})
    passed = launch.run(_job(found, arguments))
    share = sum(passed) / len(passed)
    return Reward(share if arguments.partial else float(all(passed)), {"passed": share})


def runs_code(spec: RewardSpec) -> bool:
    """Whether a reward, or a part of it, is this one."""
    parts = spec.args.get("of", ()) if spec.name == "weighted" else ()
    return spec.name == CODE or any(part["name"] == CODE for part in parts)


def find_code(text: str) -> str:
    """The last block of Markdown, which may lack its end; the whole text if there is none."""
    blocks = _FENCE.findall(text)
    return str(blocks[-1]) if blocks else text


def _job(found: str, arguments: UnitTests) -> Job:
    context = arguments.context
    defined = re.search(rf"^(?:async\s+)?(?:def|class)\s+{re.escape(arguments.names[0])}\b", found, re.MULTILINE)
    return Job(
        sources=(context, found) if defined or not context else (context + found,),
        tests=arguments.tests,
        names=arguments.names,
        context=context,
        setup=arguments.setup,
        seconds=arguments.seconds,
    )
