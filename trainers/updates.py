"""Optimizer steps as rank 0 orders them: the learner's and, bit for bit, those of a replay.

plan ──► minibatches ──► examples ──► shares of equal work ──► Engine.train on every rank ──► Outcome
weights and the probe's logprobs by them ──► WeightStore ──► sha256 of the manifest

What enters here is all that a step's bits depend on, besides :func:`numerics`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from schemas.config import RunConfig
from schemas.ledger import Numerics
from schemas.manifests import sha256
from trainers.advantages import Advantages
from trainers.aggregation import weigh
from trainers.batch import Example, to_examples
from trainers.checkpoint import Checkpoint, require_fit
from trainers.engine import Engine, Outcome, Packs, Work
from trainers.lora import Adapter
from trainers.packing import share_out
from trainers.planner import Plan
from trainers.publish import Facts, WeightStore, probe_tokens
from trainers.ranks import Ranks


class Updates:
    """The policy and its optimizer on all ranks, as they were at a checkpoint or as the model is.

    Attributes:
        dtype: ``float32`` or ``bfloat16``.
        fingerprint: what must be the same for a checkpoint's shards to fit.
        advantages: with the running baselines of tasks.

    Raises:
        ConfigError: the checkpoint was made with another model or number format.
        ModelError: the model cannot be loaded or not be trained packed.
    """

    def __init__(self, config: RunConfig, dtype: str, ranks: Ranks, checkpoint: Checkpoint | None) -> None:
        self._config, self._ranks = config, ranks
        self.dtype = dtype
        self._adapter = Adapter.of(config)
        self.fingerprint = fingerprint_of(config, dtype, self._adapter)
        if checkpoint:
            require_fit(checkpoint.state.fingerprint, self.fingerprint, checkpoint.directory)
        baselines = checkpoint.state.baselines if checkpoint else {}
        self.advantages = Advantages(config.learner.objective, config.length_tokens, baselines)
        saved = checkpoint.directory if checkpoint else None
        ranks.broadcast((dtype, saved))
        self._engine = Engine(config, dtype, ranks, saved)
        self._probe = probe_tokens(config.model.path)
        ranks.broadcast(("check", self._probe))
        self._engine.check(self._probe)

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""
        return self._engine.vocabulary

    def train(self, plan: Plan, rate: float, before_update: Callable[[], object] = lambda: None) -> Outcome:
        """One step over the groups of a plan: ``learner.minibatches`` updates, or fewer if there are fewer groups.

        Args:
            plan: what it consumes.
            rate: of learning.
            before_update: called on this rank when a gradient is known and no weight has changed yet.
        """
        groups = [arrival.samples for arrival in plan.arrivals]
        advantages = self.advantages.of_step(groups)
        number = min(self._config.learner.minibatches, len(groups))
        minibatches = [
            self._share_out(to_examples(groups[first::number], advantages[first::number], plan.too_old))
            for first in range(number)
        ]
        self._ranks.broadcast(("train", None))
        works = [Work([shares[rank] for shares in minibatches], rate) for rank in range(self._ranks.size)]
        outcome = self._engine.train(self._ranks.scatter(works), before_update)
        if outcome.applied:
            self.advantages.learn(groups)
        return outcome

    def _share_out(self, examples: list[Example]) -> list[Packs]:
        """What each rank computes of an update."""
        learner = self._config.learner
        weighed = weigh(examples, learner.objective.recipe.aggregation, self._config.length_tokens)
        return share_out(weighed, self._ranks.size, learner.micro_batch_tokens)

    def write(self, store: WeightStore, version: int, step: int, *, as_files: bool = False) -> str:
        """Publishes the weights as a version of a store; returns the sha256 of its manifest."""
        return self.prepare(store, version, step, as_files=as_files)()

    def prepare(self, store: WeightStore, version: int, step: int, *, as_files: bool = False) -> Callable[[], str]:
        """What does :meth:`write`, on any thread and beside the next gradient, as long as no weight changes.

        What needs all ranks, or the model to itself, is done before it returns.
        """
        facts = Facts(version=version, step=step, dtype=self.dtype, adapter=self._adapter)
        ask = self._ask_probe
        if self._engine.is_partitioned:
            self._ranks.broadcast(("gather", self._probe))
        weights = self._engine.state_dict()
        if self._engine.is_partitioned:
            asked = self._ask_probe()
            ask = lambda: asked  # noqa: E731
        self._engine.wait()
        return partial(store.write, weights, facts, ask, as_files=as_files)

    def _ask_probe(self) -> dict[str, Any]:
        return {"token_ids": self._probe, "logprobs": self._engine.probe(self._probe)}

    def full_weights(self) -> dict[str, torch.Tensor]:
        """Copies of the weights in float32, on the CPU, under the names that they are published by."""
        self._ranks.broadcast(("masters", None))
        return {name: tensor.to("cpu", torch.float32, copy=True) for name, tensor in self._engine.full_weights()}

    def adopt(self, directory: Path, *, forget: bool) -> None:
        """Goes on from the weights in a directory that all ranks see, whose hashes were compared.

        Args:
            directory: of a global version.
            forget: whether the optimizer begins anew.

        Raises:
            StateError: they are not those of this model.
        """
        self._ranks.broadcast(("adopt", (directory, forget)))
        self._engine.adopt(directory, forget=forget)

    def anchor(self, directory: Path) -> None:
        """Is pulled towards the weights in a directory, if the configuration says that it is, and stays where it is."""
        self._ranks.broadcast(("anchor", directory))
        self._engine.anchor(directory)

    @property
    def drift(self) -> float:
        """How far the weights were from the global version before the last update; not a number if nothing pulls."""
        return self._engine.drift

    def save(self, directory: Path) -> None:
        """Writes what a checkpoint needs, all ranks below the same directory."""
        self._ranks.broadcast(("save", directory))
        self._engine.save(directory)
        self._ranks.barrier()


def numerics(ranks: Ranks) -> Numerics:
    """What the bits of this process's steps depend on, besides the configuration."""
    cuda = ranks.device.type == "cuda"
    device = torch.cuda.get_device_name(ranks.device) if cuda else torch.backends.cpu.get_cpu_capability()
    return Numerics(torch=torch.__version__, device=device, threads=torch.get_num_threads(), ranks=ranks.size)


def fingerprint_of(config: RunConfig, dtype: str, adapter: Adapter | None) -> dict[str, str | int]:
    """What must be the same for a checkpoint to fit."""
    model = Path(config.model.path)
    description = model / "config.json"
    lora = config.learner.lora
    of_adapter: dict[str, str | int] = (
        {}
        if adapter is None
        else {
            "lora.rank": lora.rank,
            "lora.alpha": lora.alpha,
            "lora.target_modules": ", ".join(sorted(lora.target_modules)),
            "sha256 of the model's weights": adapter.base_sha256,
        }
    )
    return {
        **of_adapter,
        "run": config.name,
        "model": model.name,
        "model_config_sha256": sha256(description.read_bytes()) if description.is_file() else "missing",
        "dtype": dtype,
    }
