"""The one who wants something: a user who is told to say it at once, or one whom a model plays.

In tau-bench a model plays the user, from an instruction that says who they are and what they want. It is ``Played``
here, behind a route that the run's configuration names. ``Told`` needs no model and says the same in every run: the
instruction as it is, yes to what the agent answers, and nothing more once the agent has twice in a row said something
instead of doing something.
"""

from functools import cache
from typing import Any, Final, Protocol

from schemas.errors import ConfigError
from schemas.services import UserModelConfig
from transforms.rewards.chat import ROUTE, read_choice
from transforms.rewards.service import Service

CONFIRMS: Final = (
    "Yes, I confirm whatever I have told you to do. I have nothing to add: do what is left of it, "
    "or tell me that all is done."
)
"""What a told user says to every answer but the last."""
GREETING: Final = "Hello."
"""The first words of a user whom a model plays."""
STOP: Final = "###STOP###"
"""What the model says when its user has got what they want, or will not; nobody hears it."""


class User(Protocol):
    """Who the agent talks to."""

    async def answer(self, text: str, *, has_acted: bool) -> str | None:
        """What the user says to what the agent said; None once nothing is left to say.

        Args:
            text: that was said.
            has_acted: whether the agent has used a tool since it last said something.
        """


def told(instruction: str) -> str:
    """The first words of a told user."""
    return (
        "Hello, I am the customer who is described here, and this is all that I want from you:\n\n"
        f"{instruction.strip()}\n\n"
        "I decide as it is written there, and agree to what follows from it."
    )


class Told:
    """A told user in one conversation."""

    def __init__(self) -> None:
        self._has_confirmed = False

    async def answer(self, text: str, *, has_acted: bool) -> str | None:  # noqa: ARG002 - whatever it is
        """Yes, unless that was the last thing said as well."""
        if self._has_confirmed and not has_acted:
            return None
        self._has_confirmed = True
        return CONFIRMS


class Played:
    """A user whom a model plays, in one conversation.

    Args:
        instruction: who the user is and what they want.
        config: where the model is.

    Raises:
        ConfigError: it is nowhere, or its key is not set.
    """

    def __init__(self, instruction: str, config: UserModelConfig) -> None:
        if not (config.url and config.model):
            raise ConfigError(
                "the prompt has a model play its user, and none is configured: set rollout.environments.user.url and "
                "rollout.environments.user.model, or submit the task with --args user=told"
            )
        self._config, self._service = config, _service_of(config)
        self._messages = [_message("system", play(instruction)), _message("assistant", GREETING)]

    async def answer(self, text: str, *, has_acted: bool) -> str | None:  # noqa: ARG002 - a user sees no tools
        """What the model says.

        Raises:
            VerdictError: ``user_refused``, ``user_failed`` or ``user_unavailable``.
        """
        self._messages.append(_message("user", text))
        asked = self._config.model_dump(include={"model", "temperature", "max_tokens"})
        reply = await self._service.ask(ROUTE, {"messages": self._messages, **asked}, _read)
        self._messages.append(_message("assistant", reply))
        return None if STOP in reply else reply


def play(instruction: str) -> str:
    """What the model that plays a user is told."""
    return (
        "You play a customer who writes to the agent of a shop. This is who you are and what you want:\n\n"
        f"{instruction.strip()}\n\n"
        "Write only what the customer says, one short message at a time, in your own words. "
        "Say what you want step by step and not all at once, and give facts about yourself only when they are needed. "
        "Never make up what is not written above, such as an id or an address: say that you do not know it. "
        f"Once you have got all of it, or it is clear that you will not, answer with {STOP} and nothing else."
    )


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _read(body: bytes) -> str:
    content = read_choice(body).message.content
    if content is None:
        raise ValueError("choices[0].message.content is null, expected a text")
    return content.strip()


@cache
def _service_of(config: UserModelConfig) -> Service:
    """One a process: its conversations share connections, places and circuit breaker."""
    return Service("user", "model", config)
