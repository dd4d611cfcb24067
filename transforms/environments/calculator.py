"""``calculator``: a tool. The model writes ``<calc>17*23</calc>`` and reads the result; then it answers.

An answer without an expression is the final one: its last number is compared with the right one.
Expressions are numbers, ``+ - * / // % **`` and brackets, computed exactly in fractions; nothing of
Python is evaluated.
"""

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Final

from schemas.prompts import Message
from transforms.environments.registry import Answer, Environment, Step, environment
from transforms.rewards.last_number import RightNumber, is_right

_EXPRESSION: Final = re.compile(r"<calc>(.*?)</calc>", re.DOTALL)
_LONGEST_CHARACTERS: Final = 200
_LARGEST_BITS: Final = 1024
"""Of numerator and denominator: 300 digits, so that no power eats time or memory."""
_PLACES: Final = 12

_TWO: Final[dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction | int]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_ONE: Final[dict[type[ast.unaryop], Callable[[Fraction], Fraction]]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


class Problem(RightNumber):
    """Example: ``{"answer": "391", "role": "tool"}``."""

    role: str = "user"
    """Of the messages with results: ``tool`` where the model's chat template knows it."""


@environment("calculator")
class Calculator(Environment):
    """1 if the last number of the final answer is right, else 0; a turn that calculates adds 0."""

    async def reset(self, arguments: Problem) -> None:
        """Takes the right answer."""
        self._problem = arguments

    async def step(self, answer: Answer) -> Step:
        """The result of the last expression; without one the conversation is over."""
        found = _EXPRESSION.findall(answer.text)
        if not found:
            right = float(is_right(answer.text, self._problem))
            return Step(done=True, reward=right, parts={"calculations": 0.0})
        message = Message(role=self._problem.role, content=calculate(found[-1]))
        return Step(messages=(message,), reward=0.0, parts={"calculations": 1.0})


def calculate(expression: str) -> str:
    """The value of an expression, or what is wrong with it, as the model reads it."""
    try:
        return _to_text(_evaluate(_parse(expression)))
    except ZeroDivisionError:
        return "error: division by zero"
    except ValueError as error:
        return f"error: {error}"


def _parse(expression: str) -> ast.expr:
    text = expression.strip()
    if len(text) > _LONGEST_CHARACTERS:
        raise ValueError(f"longer than {_LONGEST_CHARACTERS} characters")
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("not an expression") from error


def _evaluate(node: ast.expr) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return _bounded(_exactly(node.value))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _ONE:
        return _ONE[type(node.op)](_evaluate(node.operand))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _power(_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.BinOp) and type(node.op) in _TWO:
        return _bounded(Fraction(_TWO[type(node.op)](_evaluate(node.left), _evaluate(node.right))))
    raise ValueError("only numbers, + - * / // % ** and brackets")


def _exactly(number: int | float) -> Fraction:
    """0.1 is a tenth."""
    if number == math.inf:
        raise ValueError("too large")
    return Fraction(str(number))


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    """Refused before it is computed if it may be too large."""
    if exponent.denominator != 1:
        raise ValueError("only whole exponents")
    bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length())
    if bits * abs(exponent) > _LARGEST_BITS:
        raise ValueError("too large")
    return _bounded(Fraction(base ** int(exponent)))


def _bounded(number: Fraction) -> Fraction:
    if max(abs(number.numerator).bit_length(), number.denominator.bit_length()) > _LARGEST_BITS:
        raise ValueError("too large")
    return number


def _to_text(number: Fraction) -> str:
    """Whole, or a decimal fraction of at most 12 places."""
    if number.denominator == 1:
        return str(number.numerator)
    scaled = round(number * 10**_PLACES)
    whole, rest = divmod(abs(scaled), 10**_PLACES)
    return f"{'-' if scaled < 0 else ''}{whole}.{rest:0{_PLACES}d}".rstrip("0").rstrip(".")
