"""The environment ``tau_retail``, turn by turn; what a conversation changes is its own.

answer ──find_call──► tool ──► what it says
             │          └── transfer_to_human_agents ──► over: 0 or 1
             └─ none ──► the user ──► what they say
                           └── nothing left to say ──► over: 0 or 1
"""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from schemas.prompts import Message
from transforms.environments.registry import Answer, Arguments, Environment, Step, environment
from transforms.environments.tau_retail import tools
from transforms.environments.tau_retail.calls import BadCall, ToolCall, find_call
from transforms.environments.tau_retail.database import Database, View
from transforms.environments.tau_retail.reward import judge
from transforms.environments.tau_retail.user import Played, Told, User


class Case(Arguments):
    """What a user wants, as the right actions and what they have to be told.

    Example: ``{"actions": [{"name": "cancel_pending_order", "arguments": {"order_id": "#W1", "reason": "no longer
    needed"}}], "outputs": ["54.04"]}``.
    """

    actions: tuple[ToolCall, ...]
    """May be none: then the database has to stay as it is."""
    outputs: tuple[str, ...] = ()
    role: str = "user"
    """Of what tools say: ``tool`` where the model's chat template knows it; in the user's role it stands in
    ``<tool_response>`` tags."""
    user: Literal["told", "model"] = "told"
    """Who the user is: one who says all at once and then agrees, or a model, that of ``rollout.environments.user``."""
    instruction: str = ""
    """What a model is told that it wants; a told user says it in the prompt."""

    @field_validator("actions")
    @classmethod
    def _can_be_done(cls, actions: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
        for action in actions:
            tools.parse(action)
        return actions

    @model_validator(mode="after")
    def _knows_what_it_wants(self) -> Self:
        if (self.user == "model") != bool(self.instruction):
            raise ValueError("an instruction is for user = 'model', which needs one")
        return self


@environment("tau_retail")
class TauRetail(Environment):
    """1 if the shop is left as it should be and the user was told what they asked for, else 0."""

    reads_data = True
    _database: ClassVar[Database]

    @classmethod
    def read_data(cls, directory: Path) -> None:
        """Reads the shop's database, for all conversations of the process.

        Raises:
            ConfigError: it is not there, or not tau-bench's.
        """
        cls._database = Database.read(directory)

    def __init__(self) -> None:
        self._user: User = Told()
        self._said: list[str] = []
        self._has_acted = False

    async def reset(self, arguments: Case) -> None:
        """Opens the shop, and finds the model that plays the user if one does."""
        self._case, self._view = arguments, View(self._database)
        if arguments.user == "model":
            self._user = Played(arguments.instruction, self.config.user)

    async def step(self, answer: Answer) -> Step:
        """What a tool or the user says."""
        try:
            call = find_call(answer.text)
        except BadCall as error:
            return self._tool_says(tools.Outcome(f"Error: {error}", is_error=True))
        return await self._hear(answer.text) if call is None else self._do(call)

    def _do(self, call: ToolCall) -> Step:
        self._has_acted = True
        outcome = tools.use(self._view, call)
        if call.name == tools.ENDING and not outcome.is_error:
            return self._end(calls=1.0)
        return self._tool_says(outcome)

    def _tool_says(self, outcome: tools.Outcome) -> Step:
        role, text = self._case.role, outcome.text
        content = text if role != "user" else f"<tool_response>\n{text}\n</tool_response>"
        return Step(
            messages=(Message(role=role, content=content),),
            reward=0.0,
            parts=_parts(calls=1.0, errors=float(outcome.is_error)),
        )

    async def _hear(self, text: str) -> Step:
        self._said.append(text)
        reply = await self._user.answer(text, has_acted=self._has_acted)
        self._has_acted = False
        if reply is None:
            return self._end()
        return Step(messages=(Message(role="user", content=reply),), reward=0.0, parts=_parts())

    def _end(self, calls: float = 0.0) -> Step:
        verdict = judge(self._view, self._said, self._case.actions, self._case.outputs)
        parts = _parts(database=verdict.database, outputs=verdict.outputs, calls=calls)
        return Step(done=True, reward=verdict.reward, parts=parts)


def _parts(database: float = 0.0, outputs: float = 0.0, calls: float = 0.0, errors: float = 0.0) -> dict[str, float]:
    """All of them in every step, so that a conversation which a limit ended counts as well."""
    return {"database": database, "outputs": outputs, "calls": calls, "errors": errors}
