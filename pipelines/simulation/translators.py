"""Users who know the right answers of a task and say them: translators who correct, and what each thinks of an answer.

    answer ──who, do they judge at all?──► (another sentence in mind?) ──scores threshold or more──► thumb up
                                                                      └─less───► correction: the right text

What somebody does depends on the seed and the answer's name alone, not on the order in which answers come.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pipelines.simulation.population import User
from schemas.errors import ConfigError
from schemas.feedback import FeedbackKind
from schemas.prompts import Prompt, RewardSpec
from schemas.trajectories import Sample
from transforms.rewards import registry
from transforms.rewards.scoring import score_samples

_RIGHT_TEXT: Final = {"chrf": "reference", "exact_match": "answer", "label": "answer"}
"""Rewards that know the right text, and the argument that holds it."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """A judgement that somebody will send."""

    user: str
    kind: FeedbackKind
    value: float | str
    delay_s: float
    """After the answer came."""


class Translators:
    """All of them, with the right answers.

    Args:
        prompts: of a task, with ids and rewards that know the right text.
        users: the population. Those whose habits are ``shuffled`` judge as if the answer were to another prompt; of
            the judgements of the others the share ``noise`` is such a slip.
        threshold: from this score on an answer is good enough.
        seed: of everything random.

    Raises:
        ConfigError: there are fewer than two prompts, or their reward does not know the right text.
    """

    def __init__(self, prompts: Sequence[Prompt], users: Sequence[User], threshold: float, seed: int) -> None:
        registry.load()
        self._rewards = [prompt.reward for prompt in prompts]
        self._rows = {prompt.prompt_id: row for row, prompt in enumerate(prompts)}
        self._users, self._threshold, self._seed = users, threshold, seed
        if len(prompts) < 2:
            raise ConfigError(f"{len(prompts)} prompts, expected 2 or more: others' answers are what raters mix up")
        if unknown := {reward.name for reward in self._rewards} - set(_RIGHT_TEXT):
            raise ConfigError(
                f"rewards {', '.join(sorted(unknown))} do not know the right text; expected {', '.join(_RIGHT_TEXT)}"
            )

    def score(self, sample: Sample) -> float | None:
        """How good an answer really is, by its task's own function; null if it answers no prompt of the task."""
        row = self._rows.get(sample.prompt_id)
        return None if row is None else _score(sample, self._rewards[row])

    def judge(self, sample: Sample) -> Opinion | None:
        """What is said of an answer to a prompt of the task; null if nothing is."""
        dice = random.Random(f"{self._seed} {sample.rollout_id}")
        user = replace(dice.choice(self._users), dice=dice)
        drops, slips = dice.random(), dice.random()
        if drops < user.habits.dropout:
            return None
        row = self._rows[sample.prompt_id]
        if user.habits.shuffled or slips < user.habits.noise:
            row = self._another(row, dice)
        return self._say(sample, self._rewards[row], user)

    def _say(self, sample: Sample, right: RewardSpec, user: User) -> Opinion:
        if _score(sample, right) >= self._threshold:
            return Opinion(user.name, "thumb", 1.0, user.delay_s())
        return Opinion(user.name, "correction", right_text(right), user.delay_s())

    def _another(self, row: int, dice: random.Random) -> int:
        other = dice.randrange(len(self._rewards) - 1)
        return other + (other >= row)


def right_text(reward: RewardSpec) -> str:
    """The text that would have been right, of a reward that knows it."""
    return str(reward.args[_RIGHT_TEXT[reward.name]])


def _score(sample: Sample, reward: RewardSpec) -> float:
    """A number; these rewards have one for every text."""
    (score,) = score_samples(reward, [sample])
    assert score.value is not None, score.error
    return score.value
