"""The prompts of the demo: built-in sums, or a file in the form of the prompts topic.

Training prompts are repeated in a new order each epoch until there are enough of them; held-out
prompts are never trained.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from schemas.errors import ConfigError, RecordError
from schemas.prompts import Message, Prompt, RewardSpec

_HELD_OUT_SUMS = 25


@dataclass(frozen=True, slots=True)
class DemoPrompts:
    """What the demo trains on and what it measures with."""

    train: tuple[Prompt, ...]
    held_out: tuple[Prompt, ...]
    rejected: tuple[bytes, ...] = ()
    """Lines that are no valid prompts; the demo sends them once, and they become dead letters."""

    def stream(self, number: int, seed: int) -> Iterator[Prompt]:
        """``number`` training prompts, reshuffled each epoch."""
        return islice(self._epochs(seed), number)

    def _epochs(self, seed: int) -> Iterator[Prompt]:
        for epoch in count():
            prompts = list(self.train)
            random.Random(f"{seed}/{epoch}").shuffle(prompts)
            yield from prompts


def sums(seed: int) -> DemoPrompts:
    """All 100 sums of two one-digit numbers, 25 of them held out."""
    prompts = [_sum(left, right) for left in range(10) for right in range(10)]
    random.Random(seed).shuffle(prompts)
    return DemoPrompts(tuple(prompts[:-_HELD_OUT_SUMS]), tuple(prompts[-_HELD_OUT_SUMS:]))


def _sum(left: int, right: int) -> Prompt:
    return Prompt(
        prompt_id=f"sums/{left}+{right}",
        task="sums",
        messages=(Message(role="user", content=f"What is {left}+{right}?"),),
        reward=RewardSpec(name="last_number", args={"answer": str(left + right)}),
    )


def from_file(path: Path) -> DemoPrompts:
    """Prompts of a JSON-lines file, the last tenth of the valid ones held out.

    Raises:
        ConfigError: the file cannot be read, or holds fewer than two valid prompts.
    """
    try:
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    except OSError as error:
        raise ConfigError(f"--prompts {path}: {error.strerror}; give a file with one prompt record a line") from error
    valid, rejected, complaint = _sort(lines)
    if len(valid) < 2:
        raise ConfigError(
            f"--prompts {path}: {len(valid)} valid prompts in {len(lines)} lines, expected 2 or more{complaint}"
        )
    held_out = max(1, len(valid) // 10)
    return DemoPrompts(tuple(valid[:-held_out]), tuple(valid[-held_out:]), tuple(rejected))


def _sort(lines: list[bytes]) -> tuple[list[Prompt], list[bytes], str]:
    valid, rejected, complaint = [], [], ""
    for line in lines:
        try:
            valid.append(Prompt.decode(line))
        except RecordError as error:
            rejected.append(line)
            complaint = complaint or f"; the first refused line: {error}"
    return valid, rejected, complaint
