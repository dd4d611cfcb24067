"""What goes to the learner: joined groups, corrections, demonstrations.

joined          the group itself, its rewards filled in
correction      answers again, under the name of the feedback that changed their rewards, rewarded by the difference
demonstration   a text that somebody gave as the right answer, under the name of that feedback
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from schemas.identity import FEEDBACK
from schemas.joining import FeedbackConfig
from schemas.trajectories import Sample, Span, new_attempt_id, pseudonym
from transforms.feedback.items import Contribution, Judged
from transforms.feedback.rewards import Rated

Demonstrate = Callable[[str, int], Sequence[int] | None]
"""From a text and the tokens of its prompt to the token ids of an answer; null if it cannot be one."""


def joined(samples: Sequence[Sample], rated: Mapping[int, Rated]) -> Contribution:
    """The group with its rewards; null for answers that too few have judged."""
    rows = tuple(
        replace(sample, purpose="feedback", reward=rated[index].reward, reward_parts=rated[index].parts)
        if (index := sample.sample_index) in rated
        else replace(sample, purpose="feedback")
        for sample in samples
    )
    return Contribution(rows, _pseudonyms(user for each in rated.values() for user in each.raters))


def correction(changed: Sequence[tuple[Sample, float]], cause: Judged, raters: Iterable[str]) -> Contribution:
    """Answers that were trained, once more with what their rewards have changed by."""
    attempt_id = new_attempt_id()
    rows = tuple(
        replace(
            _named(sample, cause, attempt_id), sample_index=index, purpose="correction", reward=change, reward_parts={}
        )
        for index, (sample, change) in enumerate(changed)
    )
    return Contribution(rows, _pseudonyms(raters))


def demonstration(
    sample: Sample, cause: Judged, rules: FeedbackConfig, demonstrate: Demonstrate
) -> Contribution | None:
    """A user's text as the answer to the prompt. It was not drawn from any policy, so its logprobs are 0."""
    text = str(cause.feedback.value)
    given = demonstrate(text, len(sample.prompt_token_ids))
    if given is None:
        return None
    token_ids = tuple(given)
    row = replace(
        _named(sample, cause, new_attempt_id()),
        purpose="demonstration",
        response_token_ids=token_ids,
        response_logprobs=(0.0,) * len(token_ids),
        loss_mask=(True,) * len(token_ids),
        weight_version_spans=(Span(sample.weight_version_min, 0),),
        weight_version_max=sample.weight_version_min,
        reward=rules.demonstration_weight,
        reward_parts={},
        finish_reason="stop",
        generated_at=datetime.fromtimestamp(cause.source.appended_s, UTC),
        response_text=text,
    )
    return Contribution((row,), _pseudonyms((cause.feedback.user,)))


def _named(sample: Sample, cause: Judged, attempt_id: str) -> Sample:
    """The sample as a group of its own, named by a feedback record; the rollout's id stays as the prompt's name."""
    partition, offset = cause.source.place
    return replace(
        sample,
        prompt_partition=FEEDBACK + partition,
        prompt_offset=offset,
        sample_index=0,
        attempt_id=attempt_id,
        prompt_id=str(sample.rollout_id),
        reward_error=None,
    )


def _pseudonyms(users: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({pseudonym(user) for user in users}))
