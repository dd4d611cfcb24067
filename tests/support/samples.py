"""Literal samples to vary in tests."""

import random
from dataclasses import replace
from datetime import UTC, datetime

from schemas.trajectories import Sample, Span
from trainers.batch import Example

SAMPLE = Sample(
    run="demo",
    prompt_partition=0,
    prompt_offset=38,
    sample_index=0,
    attempt_id="a1",
    prompt_id="sums/2+3",
    task="sums",
    purpose="train",
    prompt_token_ids=(3, 78, 4),
    response_token_ids=(11, 12, 2),
    response_logprobs=(-0.5, -1.25, -0.125),
    loss_mask=(True, True, True),
    weight_version_spans=(Span(11, 0), Span(12, 2)),
    weight_version_min=11,
    weight_version_max=12,
    reward=1.0,
    reward_parts={"last_number": 1.0},
    reward_error=None,
    finish_reason="stop",
    worker="http://127.0.0.1:8000",
    prompt_at=datetime(2026, 1, 31, 12, 0, tzinfo=UTC),
    generated_at=datetime(2026, 1, 31, 12, 0, 1, tzinfo=UTC),
    response_text="5",
)


def group(partition=0, offset=38, size=2, **changes):
    """The samples of one group."""
    changes = {"prompt_partition": partition, "prompt_offset": offset, **changes}
    return [replace(SAMPLE, sample_index=index, **changes) for index in range(size)]


def draw_examples(number, seed=0):
    """So many examples for the tiny model, of all lengths, some tokens masked."""
    draw = random.Random(seed)
    examples = []
    for _ in range(number):
        prompt, answer = draw.randint(1, 9), draw.randint(1, 12)
        tokens = tuple(draw.choices(range(6, 80), k=prompt + answer))
        mask = (True, *(draw.random() < 0.8 for _ in range(answer - 1)))
        behaviour = tuple(-4.4 + draw.random() * 0.2 for _ in range(answer))
        examples.append(Example(tokens, prompt, behaviour, mask, draw.gauss(0, 1)))
    return examples


def draw_groups(number, seed=0):
    """So many groups of four examples; the reward is whether the last token is of the upper half."""
    examples = draw_examples(4 * number, seed)
    scored = [replace(one, advantage=float(one.token_ids[-1] >= 43)) for one in examples]
    return [[replace(one, group=each) for one in scored[4 * each : 4 * each + 4]] for each in range(number)]
