"""``reward_model``: a sequence classifier, served by ``asyncflow serve-scorer``, gives the answer a number.

    token ids, text ──POST /v1/score──► {"score": -0.8, "read": "token_ids"} ──► Reward

Both forms of the answer are sent, with a hash of the vocabulary that the token ids are of. A classifier with the same
vocabulary reads the ids as the engine produced them; any other one reads the text with its own tokenizer.
"""

import math
from collections.abc import Iterable
from typing import Any

from schemas.prompts import Prompt
from schemas.scoring import SCORE_ROUTE, ScoreReply, ScoreRequest
from schemas.trajectories import Sample
from transforms.rewards.asked import AskingArguments, Case, ServiceKind, asked
from transforms.rewards.registry import Reward


class RewardModelArguments(AskingArguments):
    """Example: ``{"model": "helpful", "sigmoid": true}``."""

    model: str
    """A name of the configuration's ``rewards.reward_models``."""
    sigmoid: bool = False
    """Whether the number is brought between 0 and 1; as it is, it has no bounds."""

    def services(self) -> Iterable[tuple[ServiceKind, str]]:
        """The model."""
        return [("reward_models", self.model)]


@asked("reward_model")
async def reward_model(sample: Sample, arguments: RewardModelArguments, case: Case) -> Reward:
    """What the classifier gives.

    Raises:
        VerdictError: it gave nothing.
    """
    body = to_request(sample, case.prompt, case.vocabulary)
    reply = await case.reward_models[arguments.model].ask(SCORE_ROUTE, body, ScoreReply.model_validate_json)
    return Reward(sigmoid(reply.score) if arguments.sigmoid else reply.score)


def to_request(sample: Sample, prompt: Prompt, vocabulary: str | None) -> dict[str, Any]:
    """A ``ScoreRequest`` as JSON."""
    return ScoreRequest.model_construct(
        vocabulary=vocabulary,
        prompt_token_ids=tuple(sample.prompt_token_ids),
        response_token_ids=tuple(sample.response_token_ids),
        messages=prompt.messages,
        text=prompt.text,
        response_text=sample.response_text,
    ).model_dump(mode="json")


def sigmoid(number: float) -> float:
    """Between 0 and 1, for any finite number."""
    return 0.5 * (1.0 + math.tanh(0.5 * number))
