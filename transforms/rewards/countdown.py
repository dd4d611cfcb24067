"""``countdown``: the answer is an expression of given numbers that makes a target.

The expression is parsed and its tree is walked; nothing is evaluated by the interpreter. It is short, holds integers of
a few digits, + - * / and brackets, so that whatever is answered costs microseconds.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from typing import Final

from pydantic import Field

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward

_LONGEST_CHARACTERS: Final = 200
_ALLOWED: Final = re.compile(r"[0-9+\-*/() ]+")
_SIGNS: Final = str.maketrans("\u00d7\u00b7\u00f7\u2212\u2013[]", "**/--()")
"""Other ways to write the operations and brackets."""


class Numbers(Arguments):
    """Example: ``{"numbers": [53, 48, 1, 1], "target": 100}``."""

    numbers: tuple[int, ...] = Field(min_length=1, max_length=32)
    """Each may be used once; one that is given twice, twice."""
    target: int
    form: float = Field(default=0.0, ge=0, le=1)
    """What an expression gets that misses the target and has each of the numbers once: something to learn from for a
    model that does not answer in expressions yet."""


@reward("countdown")
def countdown(sample: Sample, arguments: Numbers) -> Reward:
    """1 if the last line of the response is an expression of the numbers that makes the target, else 0 or ``form``."""
    expression = find_expression(sample.response_text)
    if makes_target(expression, arguments.numbers, arguments.target):
        return Reward(1.0)
    return Reward(arguments.form if arguments.form and takes_all(expression, arguments.numbers) else 0.0)


def find_expression(text: str) -> str:
    """The last line that is not blank, without words before a colon, an equation's right side and marks around it."""
    line = text.rstrip().rpartition("\n")[2]
    expression = line.rpartition(":")[2].partition("=")[0].translate(_SIGNS)
    return expression.strip(" \t$`*.")


def makes_target(expression: str, numbers: tuple[int, ...], target: int) -> bool:
    """Whether an expression uses each number at most once, and no other, and equals the target, without rounding."""
    tree = _parse(expression)
    if tree is None:
        return False
    try:
        used = Counter(_leaves(tree))
        return used <= Counter(numbers) and _value(tree) == target
    except (ValueError, ZeroDivisionError):
        return False


def takes_all(expression: str, numbers: tuple[int, ...]) -> bool:
    """Whether an expression uses each number exactly once, and no other, whatever it equals."""
    tree = _parse(expression)
    try:
        return tree is not None and sorted(_leaves(tree)) == sorted(numbers)
    except ValueError:
        return False


def _parse(expression: str) -> ast.expr | None:
    if len(expression) > _LONGEST_CHARACTERS or not _ALLOWED.fullmatch(expression):
        return None
    try:
        return ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _leaves(tree: ast.expr) -> Iterator[int]:
    """All numbers of an expression.

    Raises:
        ValueError: something in it is neither a number nor one of the four operations.
    """
    match tree:
        case ast.Constant(value=int(number)):
            yield number
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            yield from _leaves(inner)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div(), right=right):
            yield from _leaves(left)
            yield from _leaves(right)
        case _:
            raise ValueError("not an expression of countdown")


def _value(tree: ast.expr) -> Fraction:
    """The exact value of an expression that ``_leaves`` accepts."""
    match tree:
        case ast.Constant(value=int(number)):
            return Fraction(number)
        case ast.UnaryOp(operand=inner):
            return -_value(inner)
        case ast.BinOp(left=left, op=operation, right=right):
            return _apply(operation, _value(left), _value(right))
    raise ValueError("not an expression of countdown")


def _apply(operation: ast.operator, left: Fraction, right: Fraction) -> Fraction:
    match operation:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
    return left / right
