"""How much each trained token counts in the loss of an update: any aggregation is a choice of weights."""

from collections.abc import Sequence
from dataclasses import replace

from schemas.objectives import Aggregation
from trainers.batch import Example


def weigh(examples: Sequence[Example], aggregation: Aggregation, length_tokens: int) -> list[Example]:
    """The examples of one update, over all ranks, with the weights of their tokens.

    - ``token_mean``: the mean over all trained tokens (DAPO, arXiv:2503.14476).
    - ``sequence_mean``: the mean over sequences of the mean over their trained tokens (GRPO, arXiv:2402.03300).
    - ``constant_length``: the sum over all, by the number of sequences and ``length_tokens`` (Dr. GRPO,
      arXiv:2503.20783). These weights do not add up to 1.
    """
    tokens = sum(example.trained_tokens for example in examples)
    weighed = []
    for example in examples:
        shares = {
            "token_mean": tokens,
            "sequence_mean": len(examples) * example.trained_tokens,
            "constant_length": len(examples) * length_tokens,
        }
        weighed.append(replace(example, weight=1.0 / shares[aggregation]))
    return weighed
