"""``last_number``: the last number of the answer is the right one."""

import re
from decimal import Decimal, InvalidOperation
from typing import Final

from pydantic import field_validator

from schemas.trajectories import Sample
from transforms.rewards.registry import Arguments, Reward, reward

_NUMBER: Final = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|-?\.\d+")


class RightNumber(Arguments):
    """Example: ``{"answer": "5"}``."""

    answer: str | int | float
    """The right number, as text or number; ``1,000`` and ``1000.0`` are the same."""

    @field_validator("answer")
    @classmethod
    def _is_number(cls, answer: str | float) -> str | float:
        _to_decimal(str(answer))
        return answer


@reward("last_number")
def last_number(sample: Sample, arguments: RightNumber) -> Reward:
    """1 if the last number in the response equals the answer, else 0."""
    return Reward(float(is_right(sample.response_text, arguments)))


def is_right(text: str, arguments: RightNumber) -> bool:
    """Whether the last number of a text is the right one."""
    found = find_last_number(text)
    return found is not None and found == _to_decimal(str(arguments.answer))


def find_last_number(text: str) -> Decimal | None:
    """The last number of a text, None if there is none. A minus sign right behind a digit subtracts."""
    matches = list(_NUMBER.finditer(text))
    return _number(text, matches[-1]) if matches else None


def find_numbers(text: str) -> list[Decimal]:
    """The numbers of a text, in their order. A minus sign right behind a digit subtracts."""
    return [_number(text, match) for match in _NUMBER.finditer(text)]


def _number(text: str, match: re.Match[str]) -> Decimal:
    subtracts = match.group().startswith("-") and match.start() > 0 and text[match.start() - 1].isdigit()
    return _to_decimal(match.group().lstrip("-") if subtracts else match.group())


def _to_decimal(text: str) -> Decimal:
    try:
        number = Decimal(text.replace(",", "").strip())
    except InvalidOperation as error:
        raise ValueError(f"{text[:40]!r} is not a number") from error
    if not number.is_finite():
        raise ValueError(f"{text[:40]!r} is not a finite number")
    return number
