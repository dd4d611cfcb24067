"""The model that is trained: a Hugging Face causal language model, asked for logprobs only.

    pack ──► layers, packed attention ──► hidden states of the trained tokens ─┬─chunks──► logits ──► logprobs
                                                                               └─► value head ──► values

Logits exist for the trained tokens only, and of one chunk at a time in full precision. Those of the first
chunks are kept for the backward pass, as the head gave them, up to a number of bytes; the others are
computed again there. So the vocabulary never fills the memory, and where there is room no product is
computed twice.

Shape suffixes: N tokens of a pack, R trained tokens, C tokens of a chunk, D width of the model, V vocabulary.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.checkpoint import checkpoint

from schemas.errors import ModelError
from trainers import attention
from trainers.attention import Sequences
from trainers.batch import Example
from trainers.heads import ScalarHead
from trainers.loading import LOADING
from trainers.logits import SMALL, Room
from trainers.packing import Pack, to_pack

_HEAD: Final = "value_head"
VALUE_HEAD: Final = f"{_HEAD}.weight"
"""Name of the value head in a checkpoint."""
_OWN_ATTENTION: Final = "sdpa"
_GUARD_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""Mean difference in nats: rounding stays an order of magnitude below, a real difference does not."""


def load_model(path: str, dtype: torch.dtype) -> Any:
    """Loads a causal language model.

    Raises:
        ModelError: the directory is missing or incomplete, or cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    attention.register()
    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise ModelError(f"model.path = {path!r} is not a model directory (no config.json); give a Hugging Face one")
    if not list(directory.glob("*.safetensors")):
        raise ModelError(f"model.path = {path!r} has no *.safetensors; convert the model with save_pretrained")
    try:
        with LOADING:
            model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation=attention.PACKED)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"model.path = {path!r} cannot be loaded: {error}") from error
    return model.eval()  # no dropout: the behaviour policy has none


def hidden_states(language_model: Any, pack: Pack) -> torch.Tensor:
    """The last hidden_ND of a pack, by a model without its head."""
    output = language_model(
        input_ids=pack.token_ids_N[None],
        position_ids=pack.position_ids_N[None],
        use_cache=False,
        sequences=Sequences.of(pack.lengths, pack.token_ids_N.device),
    )
    hidden_ND: torch.Tensor = output.last_hidden_state[0]
    return hidden_ND


class _Chosen(torch.autograd.Function):
    """Logprobs of chosen tokens, and entropies; keeps nothing but the logits as they came."""

    @staticmethod
    def forward(ctx: Any, logits_CV: torch.Tensor, target_C: torch.Tensor, temperature: float, entropy: bool) -> Any:
        ctx.save_for_backward(logits_CV, target_C)
        ctx.temperature = temperature
        all_CV = _log_softmax(logits_CV, temperature)
        logprobs_C = all_CV.gather(1, target_C[:, None])[:, 0]
        return (logprobs_C, _entropy(all_CV)) if entropy else logprobs_C

    @staticmethod
    def backward(ctx: Any, *gradients_C: torch.Tensor) -> Any:
        """D logprob / d logit = 1[target] - p, and d entropy / d logit = -p (log p + entropy)."""
        logits_CV, target_C = ctx.saved_tensors
        of_logprobs_C, *rest = gradients_C
        all_CV = _log_softmax(logits_CV, ctx.temperature)
        factor_CV: torch.Tensor = -of_logprobs_C[:, None]
        if rest:
            factor_CV = factor_CV - rest[0][:, None] * (all_CV + _entropy(all_CV)[:, None])
        gradient_CV = all_CV.exp_().mul_(factor_CV)
        gradient_CV.scatter_add_(1, target_C[:, None], of_logprobs_C[:, None])
        if ctx.temperature != 1.0:
            gradient_CV.div_(ctx.temperature)
        return gradient_CV.to(logits_CV.dtype), None, None, None


def _log_softmax(logits_CV: torch.Tensor, temperature: float) -> torch.Tensor:
    scaled_CV = logits_CV if temperature == 1.0 else logits_CV.float() / temperature
    return torch.log_softmax(scaled_CV, 1, dtype=torch.float32)


def _entropy(all_CV: torch.Tensor) -> torch.Tensor:
    return -(all_CV.exp() * all_CV).sum(1)


class Policy(torch.nn.Module):
    """The language model, asked for logprobs at the temperature of the run.

    Args:
        causal: as :func:`load_model` gives it.
        temperature: of the softmax.
        room: for logits.
        values: whether it has a value head, which is trained with it and never published.
    """

    def __init__(self, causal: Any, temperature: float, room: Room = SMALL, *, values: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.value_head = ScalarHead(causal) if values else None
        self.temperature = temperature
        self.room = room
        self._twin: tuple[Any, Any] | None = None
        self._published: tuple[list[torch.Tensor], list[int], dict[str, torch.Tensor]] | None = None

    def part_probe(self) -> None:
        """Lets :meth:`probe` run on another thread while this module is asked for logprobs.

        To be called before DeepSpeed sees the module, and not where it divides the weights over ranks: what is asked
        then is a second tree of modules over the same weights, and on a GPU a stream of its own.
        """
        shared = {id(each): each for each in (*self.causal.parameters(), *self.causal.buffers())}
        twin = copy.deepcopy(self.causal, shared)
        twin.set_attn_implementation(_OWN_ATTENTION)
        cuda = self.causal.device.type == "cuda"
        self._twin = (twin, torch.cuda.Stream(self.causal.device) if cuda else None)  # type: ignore[no-untyped-call]

    def forward(self, pack: Pack, *, entropy: bool = False, values: bool = False) -> Any:
        """Logprobs of a pack's trained tokens, under the distribution that sampling draws from.

        Args:
            pack: on the model's device.
            entropy: whether the entropies of the distributions are wanted too.
            values: whether those of the value head are.

        Returns:
            float32 logprobs_R in nats, or a tuple of them and what else is wanted, in this order: float32 entropy_R
            in nats, float32 values_R.
        """
        hidden_RD = hidden_states(self.causal.base_model, pack)[pack.index_R]
        chunks = self._chunks(hidden_RD, pack.target_R, entropy)
        told = [torch.cat(each) for each in zip(*chunks, strict=True)] if entropy else [torch.cat(list(chunks))]
        if values:
            assert self.value_head is not None
            told.append(self.value_head(hidden_RD))
        return tuple(told) if len(told) > 1 else told[0]

    def _chunks(self, hidden_RD: torch.Tensor, target_R: torch.Tensor, entropy: bool) -> Iterator[Any]:
        vocabulary = self.causal.config.get_text_config().vocab_size
        size = max(1, self.room.chunk_logits // vocabulary)
        left_bytes = self.room.kept_bytes
        for hidden_CD, target_C in zip(torch.split(hidden_RD, size), torch.split(target_R, size), strict=True):
            left_bytes -= len(target_C) * vocabulary * hidden_CD.element_size()
            if left_bytes >= 0 or not torch.is_grad_enabled():
                yield self._chunk(hidden_CD, target_C, entropy)
            else:
                yield checkpoint(
                    self._chunk, hidden_CD, target_C, entropy, use_reentrant=False, preserve_rng_state=False
                )

    def _chunk(self, hidden_CD: torch.Tensor, target_C: torch.Tensor, entropy: bool) -> Any:
        logits_CV = self.causal.get_output_embeddings()(hidden_CD)
        return _Chosen.apply(logits_CV, target_C, self.temperature, entropy)  # type: ignore[no-untyped-call]

    def by_name(self) -> dict[str, torch.nn.Parameter]:
        """All that is trained: the model's under its own names, and ``value_head.weight``."""
        own = {name: parameter for name, parameter in self.causal.named_parameters() if parameter.requires_grad}
        head = {} if self.value_head is None else dict(self.value_head.named_parameters(prefix=_HEAD))
        return {**own, **head}

    def weights(self, whole: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """All weights under Hugging Face names, where they are; of tensors that are tied only the first.

        Args:
            whole: as :meth:`by_name`; given where the model itself holds only parts of them.
        """
        if whole is not None:
            return self._name(whole)
        if self._published and [each.data_ptr() for each in self._published[0]] == self._published[1]:
            return dict(self._published[2])
        tensors = self._name(self.causal.state_dict())
        self._published = self._remember(tensors)
        return tensors

    def _remember(self, named: dict[str, torch.Tensor]) -> Any:
        """What has the names may be given again while no weight has moved, unless some of it is a copy."""
        held = [*self.causal.parameters(), *self.causal.buffers()]
        own = {each.untyped_storage().data_ptr() for each in held}
        if any(tensor.untyped_storage().data_ptr() not in own for tensor in named.values()):
            return None
        return held, [each.data_ptr() for each in held], dict(named)

    def _name(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        seen: set[tuple[int, tuple[int, ...]]] = set()
        tensors = {}
        for name, tensor in given.items():
            if name == VALUE_HEAD:
                continue
            place = (tensor.data_ptr(), tuple(tensor.shape))
            if place not in seen:
                seen.add(place)
                tensors[name] = tensor.detach()
        reverted: dict[str, torch.Tensor] = revert_weight_conversion(self.causal, tensors)
        return {name: tensor.contiguous() for name, tensor in reverted.items()}

    @torch.no_grad()
    def probe(self, token_ids: list[int]) -> list[float]:
        """Logprob at temperature 1 of each token but the first, by the model's own forward pass and attention.

        A GPU has computed the weights: see :meth:`trainers.engine.Engine.wait`.
        """
        if self._twin is None:
            with own_attention(self.causal):
                return logprobs_of(self.causal, token_ids)
        twin, stream = self._twin
        with torch.cuda.stream(stream):  # nothing where there is none
            return logprobs_of(twin, token_ids)

    @torch.no_grad()
    def check(self, token_ids: list[int]) -> None:
        """Compares this module's logprobs of two packed sequences with the model's own of one.

        Raises:
            ModelError: the model changes its logits after the head, or does not keep packed sequences apart.
        """
        after = len(token_ids) - 1
        example = Example(tuple(token_ids), 1, (0.0,) * after, (True,) * after, advantage=0.0)
        temperature, self.temperature = self.temperature, 1.0
        found_R = self(to_pack([example, example]).to(self.causal.device))
        self.temperature = temperature
        expected_R = torch.tensor(self.probe(token_ids) * 2, device=found_R.device)
        gap = float((found_R - expected_R).abs().mean())
        tolerance = _GUARD_TOLERANCE[self.causal.dtype]
        if not gap <= tolerance:
            raise ModelError(
                f"{type(self.causal).__name__}: logprobs of packed sequences are {gap:.3g} nats away from the model's "
                f"own, expected at most {tolerance}; this architecture cannot be trained packed, choose another"
            )


@torch.no_grad()
def logprobs_of(causal: Any, token_ids: list[int]) -> list[float]:
    """Logprob at temperature 1 of each token but the first, by a Hugging Face model's own forward pass."""
    tokens_N = torch.tensor(token_ids, device=causal.device)
    logits_NV = causal(input_ids=tokens_N[None], use_cache=False).logits[0, :-1].float()
    logprobs: list[float] = logits_NV.log_softmax(1).gather(1, tokens_N[1:, None])[:, 0].tolist()
    return logprobs


@contextmanager
def own_attention(causal: Any) -> Iterator[None]:
    """Transformers' attention with its own masks, for a while."""
    before = causal.config._attn_implementation
    causal.set_attn_implementation(_OWN_ATTENTION)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)
