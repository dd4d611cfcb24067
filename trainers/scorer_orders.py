"""What a scorer's rank 0 has all ranks do: steps, measurements, checkpoints and the model at the end.

groups ──► examples ──► shares of equal work, pairs kept together ──► Engine.train or Engine.measure on every rank
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from schemas.config import RunConfig
from schemas.scorers import ScorerKind
from trainers.advantages import has_variance
from trainers.aggregation import weigh
from trainers.batch import Example, to_examples
from trainers.engine import Engine, Make, Outcome, Packs, Work
from trainers.packing import share_out, share_out_together
from trainers.planner import Arrival
from trainers.publish import probe_tokens
from trainers.ranks import Ranks
from trainers.scorers import Critic, RewardModel, write_classifier

KINDS: Final[dict[ScorerKind, Make]] = {"reward": RewardModel, "critic": Critic}


class Orders:
    """What rank 0 has all ranks do.

    Args:
        config: as :func:`as_scorer` gives it.
        dtype: ``float32`` or ``bfloat16``.
        ranks: all that train.
        saved: a checkpoint, or null for the language model with a head of zeros.
    """

    def __init__(self, config: RunConfig, dtype: str, ranks: Ranks, saved: Path | None) -> None:
        self._config, self._ranks = config, ranks
        self._probe = probe_tokens(config.model.path)
        ranks.broadcast((dtype, saved))
        self._engine = Engine(config, dtype, ranks, saved, KINDS[config.scorer.kind])
        self.vocabulary = self._engine.vocabulary
        ranks.broadcast(("check", self._probe))
        self._engine.check(self._probe)

    def train(self, arrivals: list[Arrival], rate: float) -> Outcome:
        """One step."""
        shares = self._share_out(arrivals)
        self._ranks.broadcast(("train", None))
        return self._engine.train(self._ranks.scatter([Work([packs], rate) for packs in shares]))

    def measure(self, arrivals: list[Arrival]) -> dict[str, float]:
        """The loss of groups and its figures."""
        shares = self._share_out(arrivals)
        self._ranks.broadcast(("measure", None))
        return self._engine.measure(self._ranks.scatter(shares))

    def _share_out(self, arrivals: list[Arrival]) -> list[Packs]:
        groups = [arrival.samples for arrival in arrivals]
        examples = to_examples(groups, [arrival.rewards for arrival in arrivals])
        most_tokens = self._config.learner.micro_batch_tokens
        if self._config.scorer.kind == "critic":
            return share_out(weigh(examples, "token_mean", 1), self._ranks.size, most_tokens)
        return share_out_together(_pairable(examples), self._ranks.size, most_tokens)

    def save(self, directory: Path) -> None:
        """Writes model and optimizer below a checkpoint's directory."""
        self._ranks.broadcast(("save", directory))
        self._engine.save(directory)
        self._ranks.barrier()

    def write(self, directory: Path) -> dict[str, Any]:
        """Writes the model for transformers; returns what it makes of the probe."""
        self._ranks.broadcast(("gather", self._probe))
        tensors, numbers = self._engine.state_dict(), self._engine.probe(self._probe)
        write_classifier(self._config.model.path, tensors, directory)
        return {"probe": {"token_ids": self._probe, "scores": numbers}}


def _pairable(examples: list[Example]) -> list[list[Example]]:
    """Those groups that still have a pair without the samples of which no token is trained; all count the same."""
    groups: dict[int, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.group, []).append(example)
    kept = [group for group in groups.values() if has_variance([example.advantage for example in group])]
    return [[replace(example, weight=1 / len(kept)) for example in group] for group in kept]
