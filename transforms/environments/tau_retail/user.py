"""The one who wants something: ``told``, who says everything at once and confirms what is asked.

In tau-bench a model plays the user, from an instruction that says who they are and what they want. Told users need no
model and say the same in every run: they hand the instruction over as it is, say yes to what the agent answers, and
are gone when the agent has twice in a row said something instead of doing something.
"""

from typing import Final

CONFIRMS: Final = (
    "Yes, I confirm whatever I have told you to do. I have nothing to add: do what is left of it, "
    "or tell me that all is done."
)
"""What a told user says to every answer but the last."""


def told(instruction: str) -> str:
    """The user's first words."""
    return (
        "Hello, I am the customer who is described here, and this is all that I want from you:\n\n"
        f"{instruction.strip()}\n\n"
        "I decide as it is written there, and agree to what follows from it."
    )


class Told:
    """A told user in one conversation."""

    def __init__(self) -> None:
        self._has_confirmed = False

    def sees_tool(self) -> None:
        """The agent does something."""
        self._has_confirmed = False

    def answer(self) -> str | None:
        """What the user says to what the agent said; None once nothing is left to say."""
        if self._has_confirmed:
            return None
        self._has_confirmed = True
        return CONFIRMS
