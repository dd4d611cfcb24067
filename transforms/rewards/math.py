"""``math``: the answer is mathematically the right one, by math-verify.

math-verify's own time limits use SIGALRM, which works in a main thread only; they are off, because
reward processes are killed from outside when their time is up.
"""

import logging
from functools import lru_cache
from typing import Any

from pydantic import Field

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward


class RightExpression(Arguments):
    r"""Example: ``{"answer": "\\frac{1}{2}"}``."""

    answer: str = Field(min_length=1, max_length=10_000)
    """LaTeX with or without dollar signs, or a plain expression."""


@reward("math")
def math(sample: Sample, arguments: RightExpression) -> Reward:
    """1 if the expression that the response ends with equals the answer, else 0.

    Raises:
        ValueError: the answer of the prompt itself is not an expression.
    """
    from math_verify import verify

    gold = _parse_gold(arguments.answer)
    if all(isinstance(form, str) for form in gold):
        raise ValueError(f"the right answer {arguments.answer[:80]!r} is not a mathematical expression")
    given = _parse(sample.response_text)
    return Reward(float(verify(gold, given, timeout_seconds=None)))


@lru_cache(maxsize=1024)
def _parse_gold(answer: str) -> Any:
    answer = answer.replace("\\$", "")  # a price, whose sign neither is part of the number nor begins LaTeX
    marked = any(mark in answer for mark in ("$", "\\boxed", "\\[", "\\("))
    return _parse(answer) if marked else _parse(f"${answer}$") or _parse(answer)


def _parse(text: str) -> Any:
    from math_verify import parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse(text, parsing_timeout=None)
