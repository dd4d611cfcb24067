"""Environments that do what they should not, and one that does what it is told."""

import asyncio
import contextlib
import os
import sys
import time

from schemas.prompts import Message
from transforms.environments.registry import Answer, Arguments, Environment, Step, environment

MODULE = __name__


class Manner(Arguments):
    """How it misbehaves."""

    manner: str
    at_reset: bool = False


@environment("misbehaving")
class Misbehaving(Environment):
    """Misbehaves in one of many manners."""

    async def reset(self, arguments: Manner) -> None:
        self._manner = arguments.manner
        if arguments.at_reset:
            await self._misbehave()

    async def step(self, answer: Answer) -> Step:
        return await self._misbehave()

    async def _misbehave(self):
        return await getattr(self, self._manner)()

    async def raises(self):
        raise LookupError("no such thing")

    async def awaits(self):
        await asyncio.sleep(3600)

    async def blocks(self):
        time.sleep(3600)

    async def ignores_its_end(self):
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)

    async def exits(self):
        sys.exit(3)

    async def dies(self):
        os._exit(3)

    async def returns_a_dict(self):
        return {"done": True, "reward": 1.0}

    async def says_nothing(self):
        return Step.model_construct(messages=(), done=False, reward=None, parts={})

    async def gives_nan(self):
        return Step(done=True, reward=float("nan"))

    async def gives_infinity_unchecked(self):
        return Step.model_construct(messages=(), done=True, reward=float("inf"), parts={})

    async def talks_too_much(self):
        return Step(messages=(Message(role="user", content="x" * (2 << 20)),))

    async def prints(self):
        print("x" * 100_000, flush=True)  # noqa: T201
        os.write(1, b"garbage\n")
        return Step(done=True, reward=1.0)

    async def raises_half_a_character(self):
        raise LookupError("\ud800")

    async def says_half_a_character(self):
        return Step(messages=(Message.model_construct(role="user", content="\ud800"),))

    async def garbles_the_replies(self):
        for descriptor in range(3, 20):  # also that which replies go to
            with contextlib.suppress(OSError):
                os.write(descriptor, b"garbage\n")
        return Step(done=True, reward=1.0)

    async def is_fine(self):
        return Step(done=True, reward=0.5, parts={"fine": 1.0})


class Lines(Arguments):
    """What it says, turn by turn; after the last line it is done."""

    says: tuple[str, ...]
    rewards: tuple[float | None, ...] = ()


@environment("scripted")
class Scripted(Environment):
    """Says its lines and adds its rewards, turn by turn."""

    async def reset(self, arguments: Lines) -> None:
        self._lines = arguments

    async def step(self, answer: Answer) -> Step:
        turn, lines = answer.turn - 1, self._lines
        reward = lines.rewards[turn] if turn < len(lines.rewards) else None
        parts = {"length": float(len(answer.text))}
        if turn >= len(lines.says):
            return Step(done=True, reward=reward, parts=parts)
        return Step(messages=(Message(role="user", content=lines.says[turn]),), reward=reward, parts=parts)
