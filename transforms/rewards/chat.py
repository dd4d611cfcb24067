"""OpenAI's route for chats, as far as it is used: by judges, and by models that play users."""

from typing import Final

import msgspec

ROUTE: Final = "/v1/chat/completions"


class _Message(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    """What the model said, and why it stopped."""

    message: _Message
    finish_reason: str | None = None


class _Completion(msgspec.Struct):
    choices: list[Choice]


def read_choice(body: bytes) -> Choice:
    """The first choice of the route's answer.

    Raises:
        ValueError: this is no completion.
    """
    completion = msgspec.json.decode(body, type=_Completion)
    if not completion.choices:
        raise ValueError("a completion without choices")
    return completion.choices[0]
