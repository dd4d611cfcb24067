"""DeepSpeed around what is trained: one call is one step of the learner, of one update or several.

packs of all updates ──► what is known before the first (trainers/trained.py)
packs of an update ──► forward ──► loss ──► backward (every pack) ──► all ranks agree on the norm ──► AdamW
"""
# ruff: noqa: N806 - the suffixes are the shapes

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from schemas.config import RunConfig
from schemas.crash_points import crash_point
from schemas.errors import ConfigError
from schemas.lora import published_name
from trainers import activations
from trainers.batch import Example
from trainers.deepspeed_config import deepspeed_settings
from trainers.disk import disk_errors
from trainers.full_state import FullState, TensorFiles, has_weights, load_weights, require_tensors
from trainers.optimizer import ClippedAdamW
from trainers.packing import to_pack
from trainers.policy_gradient import PolicyGradient
from trainers.ranks import Ranks
from trainers.trained import Loss, Trained
from trainers.whole_step import shorten

STATE_DIRECTORY: Final = "state"
"""Of a checkpoint: what :class:`trainers.full_state.FullState` writes."""
_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


Packs: TypeAlias = list[list[Example]]
"""What a rank computes for one update, in turns; as many turns on all ranks."""

Make: TypeAlias = Callable[[RunConfig, torch.dtype, Ranks], Trained]
"""Gives what is trained, before DeepSpeed divides it."""


@dataclass(frozen=True, slots=True)
class Work:
    """A rank's part of one step."""

    minibatches: list[Packs]
    """One for each update of the weights; as many on all ranks."""
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step did; equal on all ranks.

    An update whose gradient is not finite changes nothing, and the ones after it are made all the same: they are of
    other samples. So a step counts as applied once one of its updates was, and all its groups count as trained:
    doing it again makes the same updates and leaves out the same one. What cannot recover gives no finite gradient
    from there on, so that its next step is not applied at all.
    """

    applied: bool
    """False if no gradient was finite: then no weight changed."""
    loss: float
    """The mean over updates."""
    grad_norm: float
    """Before clipping; of several updates the largest of those that were applied."""
    figures: dict[str, float]
    """Means over the terms of the loss, with their weights, of :attr:`trainers.trained.Trained.figures`; with several
    updates ``updates``, how many were applied."""


class Engine:
    """What is trained, its optimizer and their state, on one rank.

    Args:
        config: of the run.
        dtype: ``float32`` or ``bfloat16``.
        ranks: all that train.
        saved: a directory that :meth:`save` wrote to, by any ranks and at any stage; null for the model as it is.
        make: gives what is trained; the policy if nothing else is said.

    Raises:
        ConfigError: a setting contradicts another, or cannot be trained with.
        ModelError: the model cannot be loaded.
        StateError: what was saved is of another model.
    """

    def __init__(
        self,
        config: RunConfig,
        dtype: str,
        ranks: Ranks,
        saved: Path | None = None,
        make: Make = PolicyGradient,
    ) -> None:
        if dtype not in _DTYPES:
            raise ConfigError(f"model.dtype = {dtype!r}: the learner trains in float32 or bfloat16")
        self._config, self._ranks, self.dtype = config.learner, ranks, dtype
        settings = deepspeed_settings(config, dtype, ranks.size)
        self._trained = make(config, _DTYPES[dtype], ranks)
        parameters = self._trained.by_name()
        fresh = self._load(parameters, saved / STATE_DIRECTORY) if saved else set()
        self.vocabulary = int(self._trained.language_model.config.get_text_config().vocab_size)
        self._optimizer = ClippedAdamW(parameters.values(), config.learner, ranks)
        self._engine = _initialize(self._trained.module, self._optimizer, settings)
        shorten(self._engine, self._optimizer, ranks.size)
        self._calm()
        self._optimizer.armed = True
        self._optimizer.proximal_mu = config.federation.proximal_mu if config.federation.is_site else 0.0
        self._state = FullState(parameters, self._engine, self._optimizer)
        if saved:
            self._state.load(saved / STATE_DIRECTORY, fresh)

    def _load(self, parameters: dict[str, torch.nn.Parameter], saved: Path) -> set[str]:
        """Overwrites weights with saved ones; gives the names of those that begin anew."""
        fresh = self._trained.fresh(partial(has_weights, saved))
        load_weights({name: parameter for name, parameter in parameters.items() if name not in fresh}, saved)
        return fresh

    @property
    def is_partitioned(self) -> bool:
        """Whether each rank holds only a part of every weight: then all that reads weights is a collective call."""
        return self._config.zero_stage == 3

    def _calm(self) -> None:
        """DeepSpeed switches to training mode, and with it dropout on."""
        self._trained.module.eval()
        activations.prepare(self._trained.language_model, checkpointing=self._config.activation_checkpointing)

    def train(self, work: Work, before_update: Callable[[], object] = lambda: None) -> Outcome:
        """One step; a collective call.

        Args:
            work: of this rank.
            before_update: called before each update of the weights, with its gradient computed or on its way.
        """
        crash_point("before_forward")
        before = iter(self._look(work.minibatches))
        totals = torch.zeros(1 + 2 * len(self._trained.figures), dtype=torch.float64, device=self._ranks.device)
        norms: list[tuple[bool, float]] = []
        for packs in work.minibatches:
            for pack in packs:
                totals += self._accumulate(pack, next(before, None))
            crash_point("after_backward")
            before_update()
            norms.append(self._update(work.learning_rate))
        return self._conclude(norms, self._ranks.sum(totals.tolist()))

    def _look(self, minibatches: list[Packs]) -> Sequence[Any]:
        packs = (to_pack(examples).to(self._ranks.device) for examples in chain(*minibatches))
        return self._trained.look(packs, len(minibatches))

    def _accumulate(self, examples: Sequence[Example], before: Any) -> torch.Tensor:
        pack = to_pack(examples).to(self._ranks.device)
        loss = self._trained.loss(self._engine, pack, before)
        # DeepSpeed averages gradients over ranks; the weights are of all of them.
        self._engine.backward((loss.terms_K * loss.weights_K).sum() * self._ranks.size)
        return _sums(loss)

    @torch.no_grad()
    def measure(self, packs: Packs) -> dict[str, float]:
        """The loss of packs and its figures, without training; a collective call.

        Args:
            packs: of this rank, as many on all ranks.
        """
        totals = torch.zeros(1 + 2 * len(self._trained.figures), dtype=torch.float64, device=self._ranks.device)
        for examples in packs:
            pack = to_pack(examples).to(self._ranks.device)
            totals += _sums(self._trained.loss(self._trained.module, pack, None))
        loss, *sums = self._ranks.sum(totals.tolist())
        return {"loss": loss, **self._means(sums)}

    def _update(self, learning_rate: float) -> tuple[bool, float]:
        """Steps with the gradient so far; gives whether it was finite, and its norm."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.norm, self._optimizer.applied = math.nan, False
        self._engine.step()
        crash_point("after_step")
        return self._optimizer.applied, self._optimizer.norm

    def _conclude(self, norms: list[tuple[bool, float]], totals: list[float]) -> Outcome:
        loss, *sums = totals
        figures = self._means(sums)
        finite = [norm for applied, norm in norms if applied]
        if len(norms) > 1:
            figures["updates"] = float(len(finite))
        return Outcome(bool(finite), loss / len(norms), max(finite, default=norms[-1][1]), figures)

    def _means(self, sums: list[float]) -> dict[str, float]:
        """Of figures, given the sums of each and then the weights of each; not a number where there is nothing."""
        names = self._trained.figures
        parts = zip(names, sums[: len(names)], sums[len(names) :], strict=True)
        return self._trained.conclude({name: each / weight if weight else math.nan for name, each, weight in parts})

    def state_dict(self) -> dict[str, torch.Tensor]:
        """See :meth:`trainers.trained.Trained.weights`; a collective call if :attr:`is_partitioned`.

        Partitioned weights are put together one by one, in the memory of the CPU, on rank 0 alone: the others
        get an empty mapping.
        """
        if not self.is_partitioned:
            return self._trained.weights()
        whole = self._gather()
        return self._trained.weights(whole) if self._ranks.leads else {}

    def _gather(self) -> dict[str, torch.Tensor]:
        from deepspeed.runtime.zero import GatheredParameters

        whole = {}
        for name, parameter in self._trained.by_name().items():
            with GatheredParameters([parameter]):
                if self._ranks.leads:
                    whole[name] = parameter.detach().to("cpu", copy=True)
        return whole

    # -------------------------------------------------------------- federation

    def published(self) -> dict[str, str]:
        """Under which name each trained weight is published; those that no engine gets have none.

        Raises:
            ConfigError: some of what is published is no trained weight as it is: it cannot be taken back.
        """
        given = self._trained.weights()
        names = {name: name if name in given else published_name(name) for name in self._trained.by_name()}
        found = {name: known for name, known in names.items() if known in given}
        if missing := sorted(given.keys() - found.values()):
            raise ConfigError(
                f"federation: {type(self._trained.language_model).__name__} publishes {missing[0]}, which it trains in "
                "another form; a site cannot take it from a global version, choose another model or learner.lora"
            )
        return found

    def full_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each published weight in float32, to be read before the next is asked for; a collective call."""
        names = self.published()
        yield from ((names[name], tensor) for name, tensor in self._state.weights() if name in names)

    def adopt(self, directory: Path, *, forget: bool) -> None:
        """Goes on from published weights, and is pulled towards them if the configuration says so; collective.

        Args:
            directory: with safetensors files whose hashes were compared.
            forget: whether the optimizer begins anew.

        Raises:
            StateError: they are not those of this model.
        """
        names = self.published()
        with TensorFiles(directory) as files:
            shapes = {known: self._trained.by_name()[name].shape for name, known in names.items()}
            require_tensors(files, shapes, directory)
            self._state.take(((name, files.read(known)) for name, known in names.items()), forget=forget)
        self._optimizer.anchor()

    @property
    def drift(self) -> float:
        """See :attr:`trainers.optimizer.ClippedAdamW.drift`."""
        return self._optimizer.drift

    def anchor(self, directory: Path) -> None:
        """Is pulled towards published weights, and stays where it is; collective."""
        if not self._optimizer.proximal_mu:
            return
        now = [(name, tensor.to("cpu", copy=True)) for name, tensor in self._state.weights()]
        self.adopt(directory, forget=False)
        self._state.take(now, forget=False)

    def wait(self) -> None:
        """Returns when the device has done what it was asked to: then any thread and stream sees the weights."""
        if self._ranks.device.type == "cuda":
            torch.cuda.current_stream(self._ranks.device).synchronize()

    def probe(self, token_ids: list[int]) -> list[float]:
        """See :meth:`trainers.trained.Trained.probe`."""
        return self._trained.probe(token_ids)

    def check(self, token_ids: list[int]) -> None:
        """See :meth:`trainers.trained.Trained.check`."""
        self.wait()
        self._trained.check(token_ids)

    def save(self, directory: Path) -> None:
        """Writes what training goes on from below ``directory``; a collective call.

        Raises:
            DiskError: there is no room or no permission.
        """
        state = directory / STATE_DIRECTORY
        with disk_errors("checkpoint", directory):
            state.mkdir(exist_ok=True)
            self._state.save(state, self._ranks.rank, self._ranks.size)


def _sums(loss: Loss) -> torch.Tensor:
    """Of the terms, of each figure, and of the weights of each figure."""
    terms_K, weights_K = loss.terms_K.detach(), loss.weights_K
    own = [weights_K.masked_fill(loss.left_out[n], 0.0) if n in loss.left_out else weights_K for n in loss.figures]
    told_FK = torch.stack(
        [terms_K * weights_K, *(k * w for k, w in zip(loss.figures.values(), own, strict=True)), *own]
    )
    return told_FK.sum(1).double()


def _initialize(module: torch.nn.Module, optimizer: ClippedAdamW, settings: dict[str, Any]) -> Any:
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    import deepspeed

    logger.handlers, logger.propagate = [], True  # its own prints to the standard output, where our JSON is
    # An all-reduce for inference that DeepSpeed compiles for 20 s at first use and that is never called here.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
    return engine
