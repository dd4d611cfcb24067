"""``tau_retail``: customers of a shop, whom an agent helps with tools; scored by what the shop's database is left as.

Yao et al. 2024, arXiv:2406.12045. Train is ``tasks_train.json``, held out is ``tasks_test.json``, as published. A
prompt is the shop's policy (``wiki.md``) with the tools, and the user's first words; its environment knows the right
actions. The database is not in it: the environment reads it from the directory that the configuration names.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from pipelines.tasks.lines import Row, read_list
from pipelines.tasks.task import Split, Task
from schemas.errors import ConfigError
from schemas.prompts import ENVIRONMENT_REWARD, EnvironmentSpec, Message, Prompt, RewardSpec
from schemas.records import first_fault
from transforms.environments.tau_retail import tools
from transforms.environments.tau_retail.environment import Case
from transforms.environments.tau_retail.user import GREETING, told

_FILES: Final = {"train": "train", "held_out": "test"}
_DIRECTORY: Final = "tau-bench/retail"


class TauRetail(Task):
    """Example: ``TauRetail(role="tool")``."""

    name = "tau_retail"
    title = f"tau-bench, {_DIRECTORY}/wiki.md, tasks_train.json and tasks_test.json"

    role: str = "user"
    """Of what tools say: ``tool`` where the model's chat template knows it."""
    user: Literal["told", "model"] = "told"
    """Who the customer is: one who says all at once and then agrees, or the model of ``rollout.environments.user``."""
    most_characters: int = Field(default=16_000, ge=1)
    """Of a prompt; a longer one is refused, for it would leave too little of a model's context to the conversation."""

    def files(self, split: Split) -> tuple[str, ...]:
        """The policy and a list of tasks."""
        return f"{_DIRECTORY}/wiki.md", f"{_DIRECTORY}/tasks_{_FILES[split]}.json"

    def rows(self, data: Path, split: Split) -> Iterator[tuple[str, RewardSpec]]:
        """One row a customer: their first words."""
        for row in _read(data / self.files(split)[1]):
            yield self._first_words(row), RewardSpec(name=ENVIRONMENT_REWARD)

    def prompts(self, data: Path, split: Split) -> Iterator[Prompt]:
        """All prompts of a split, in the order of the file.

        Raises:
            ConfigError: a file is missing, does not hold what it should, or gives a prompt that is too long.
        """
        self._require(data, split)
        policy, tasks = (data / name for name in self.files(split))
        system = Message(role="system", content=instruct(_text(policy)))
        for number, row in enumerate(_read(tasks)):
            messages = (system, Message(role="user", content=self._first_words(row)))
            yield self._conversation(f"{self.label}/{split}/{number}", messages, self._case(row))

    @property
    def label(self) -> str:
        """Another one where a model plays the user, for that is another task."""
        return self.name if self.user == "told" else f"{self.name}-{self.user}"

    def _first_words(self, row: "_Customer") -> str:
        return told(row.instruction) if self.user == "told" else GREETING

    def _case(self, row: "_Customer") -> Case:
        """What the environment is told."""
        given = row.case()
        if self.user == "model":
            given |= {"user": "model", "instruction": row.instruction}
        return Case.model_validate({**given, "role": self.role})

    def _conversation(self, prompt_id: str, messages: tuple[Message, ...], case: Case) -> Prompt:
        characters = sum(len(message.content) for message in messages)
        if characters > self.most_characters:
            raise ConfigError(
                f"{prompt_id} has {characters} characters, at most {self.most_characters} are wanted; "
                "raise it with --args most_characters=N if the model's context has room"
            )
        return Prompt(
            prompt_id=prompt_id, task=self.label, messages=messages, reward=RewardSpec(name=ENVIRONMENT_REWARD),
            environment=EnvironmentSpec(name="tau_retail", args=case.model_dump(mode="json", exclude_defaults=True)),
        )  # fmt: skip


class _Action(Row):
    name: str
    kwargs: dict[str, Any]


class _Customer(Row):
    instruction: str
    actions: tuple[_Action, ...]
    outputs: tuple[str, ...]

    def case(self) -> dict[str, Any]:
        """What every environment of it is told."""
        actions = [{"name": action.name, "arguments": action.kwargs} for action in self.actions]
        return {"actions": actions, "outputs": self.outputs}


def instruct(policy: str) -> str:
    """What the agent reads before anything: the policy, the tools, and how to ask for one."""
    return (
        f"{policy.strip()}\n\n"
        f"# Tools\n\n{tools.describe()}\n\n"
        "To use a tool, answer with nothing but one JSON object in tags, and read its result before you go on:\n"
        '<tool_call>{"name": "get_order_details", "arguments": {"order_id": "#W0000000"}}</tool_call>\n'
        "All arguments are strings, but item_ids and new_item_ids, which are lists of strings. "
        "An answer without tags is said to the user."
    )


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: {error}; expected the shop's policy, a text in UTF-8") from error


def _read(file: Path) -> Iterator[_Customer]:
    """The tasks of a file, which the environment can play."""
    for number, row in read_list(file, _Customer):
        try:
            Case.model_validate(row.case())
        except ValidationError as error:
            raise ConfigError(f"{file}, counted from 0: {number}.{first_fault(error)}") from error
        yield row
