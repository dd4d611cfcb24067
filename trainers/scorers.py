"""Models that give numbers instead of tokens: a reward model and a critic, trained by the engine of the policy.

    pack ──► layers, packed attention ──► hidden states ──► head ─┬─ after the last token of each sequence ──► scores
                                                                  └─ before each trained token ──► values

Their weights are those of transformers' ``AutoModelForSequenceClassification`` with ``num_labels=1``, which scores
a sequence after its last token: of a critic's it is given the beginning of an answer.

Shape suffixes: N tokens of a pack, R trained response tokens, S sequences of a pack, D width of the model.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from schemas.config import RunConfig
from schemas.errors import ModelError
from trainers.batch import Example
from trainers.heads import ScalarHead
from trainers.losses.bradley_terry import bradley_terry
from trainers.losses.value import value_loss
from trainers.packing import Pack, to_pack
from trainers.policy import hidden_states, load_model, own_attention
from trainers.ranks import Ranks
from trainers.returns import MOMENTS, Returns, explain_variance, find_returns, moments
from trainers.trained import Loss

_HEAD: Final = "score"
"""What transformers calls it."""
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Mean difference of hidden states as a share of their mean size: rounding stays an order of magnitude below."""


class Scorer(torch.nn.Module):
    """The layers of a language model with a head for one number.

    Args:
        causal: as :func:`trainers.policy.load_model` gives it; its own head is let go of.
    """

    def __init__(self, causal: Any) -> None:
        super().__init__()
        self.language_model = causal.base_model
        self.head = ScalarHead(causal.base_model)
        self._prefix = causal.base_model_prefix

    def forward(self, pack: Pack, index_R: torch.Tensor) -> torch.Tensor:
        """float32 numbers_R after the tokens at some places of a pack."""
        numbers_R: torch.Tensor = self.head(hidden_states(self.language_model, pack)[index_R])
        return numbers_R

    def by_name(self) -> dict[str, torch.nn.Parameter]:
        """All parameters under the names that they have in transformers."""
        own = self.language_model.named_parameters(prefix=self._prefix)
        return {**dict(own), **dict(self.head.named_parameters(prefix=_HEAD))}

    @torch.no_grad()
    def probe(self, token_ids: list[int]) -> list[float]:
        """The number after each token but the first, by transformers' own attention."""
        numbers: list[float] = self.head(self._own_hidden(token_ids))[1:].tolist()
        return numbers

    def _own_hidden(self, token_ids: list[int]) -> torch.Tensor:
        tokens_N = torch.tensor(token_ids, device=self.language_model.device)
        with own_attention(self.language_model):
            hidden_ND: torch.Tensor = self.language_model(tokens_N[None], use_cache=False).last_hidden_state[0]
        return hidden_ND

    @torch.no_grad()
    def check(self, token_ids: list[int]) -> None:
        """Compares hidden states of two packed sequences with those of one by transformers' own attention.

        Raises:
            ModelError: the model does not keep packed sequences apart.
        """
        after = len(token_ids) - 1
        example = Example(tuple(token_ids), 1, (0.0,) * after, (True,) * after, advantage=0.0)
        expected_ND = self._own_hidden(token_ids).float().repeat(2, 1)
        found_ND = hidden_states(self.language_model, to_pack([example, example]).to(expected_ND.device)).float()
        gap = float((found_ND - expected_ND).abs().mean() / expected_ND.abs().mean())
        tolerance = _TOLERANCE[self.language_model.dtype]
        if not gap <= tolerance:
            raise ModelError(
                f"{type(self.language_model).__name__}: hidden states of packed sequences differ by a share of "
                f"{gap:.3g} from the model's own, expected at most {tolerance}; choose another architecture"
            )


class _Scored:
    """What a reward model and a critic have in common; see :class:`trainers.trained.Trained`.

    Args:
        config: of the run.
        dtype: that the model is computed in.
        ranks: all that train.

    Raises:
        ModelError: the model cannot be loaded, or transformers has no sequence classification for it.
    """

    figures: Sequence[str]

    def __init__(self, config: RunConfig, dtype: torch.dtype, ranks: Ranks) -> None:
        self._config = config.scorer
        scorer = Scorer(load_model(config.model.path, dtype).to(ranks.device))
        self.module: torch.nn.Module = scorer
        self.language_model: Any = scorer.language_model
        self.by_name, self.probe, self.check = scorer.by_name, scorer.probe, scorer.check
        empty_classifier(config.model.path, {name: tuple(each.shape) for name, each in self.by_name().items()})

    def fresh(self, has: Callable[[str], bool]) -> set[str]:  # noqa: ARG002 - the form of Trained
        """None: a checkpoint holds all of it."""
        return set()

    def look(self, packs: Iterable[Pack], updates: int) -> list[Any]:  # noqa: ARG002 - the form of Trained
        """Nothing has to be known before the first update."""
        return []

    def conclude(self, means: dict[str, float]) -> dict[str, float]:
        """See :func:`trainers.returns.explain_variance`."""
        return explain_variance(means)

    def weights(self, whole: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
        """Under the names that they have in transformers."""
        return dict(self.by_name()) if whole is None else whole


class RewardModel(_Scored):
    """Learns which answer of a group is the better one, from its last token."""

    figures: Sequence[str] = ("pairwise_accuracy", "margin")

    def loss(self, forward: Callable[..., Any], pack: Pack, before: Any) -> Loss:  # noqa: ARG002 - as Trained
        """Every pair of sequences is a term; see :func:`trainers.losses.bradley_terry.bradley_terry`."""
        lengths_S = torch.tensor(pack.lengths, device=pack.token_ids_N.device)
        first_S = torch.searchsorted(pack.sequence_R, torch.arange(len(pack.lengths), device=lengths_S.device))
        scores_S = forward(pack, lengths_S.cumsum(0) - 1)
        pairs = bradley_terry(scores_S, pack.advantages_R[first_S], pack.group_S, pack.weights_R[first_S])
        right_SS = (pairs.margins_SS > 0).float() + 0.5 * (pairs.margins_SS == 0).float()
        figures = {"pairwise_accuracy": right_SS.flatten(), "margin": pairs.margins_SS.flatten()}
        return Loss(pairs.losses_SS.flatten(), pairs.weights_SS.flatten(), figures)


class Critic(_Scored):
    """Learns what reward is to be expected, before each token of an answer."""

    figures: Sequence[str] = ("value_loss", *MOMENTS)

    def loss(self, forward: Callable[..., Any], pack: Pack, before: Any) -> Loss:  # noqa: ARG002 - as Trained
        """Half the squared distance from the discounted reward, a term for each trained token."""
        values_R = forward(pack, pack.index_R)
        nothing_R = torch.zeros_like(values_R)
        targets_R = find_returns(pack, nothing_R, None, gamma=self._config.gamma, gae_lambda=1.0).returns_R
        terms_R = value_loss(values_R, values_R.detach(), targets_R, clip=0.0)
        told = moments(Returns(values_R.detach(), targets_R, nothing_R))
        return Loss(terms_R, pack.weights_R, {"value_loss": terms_R.detach(), **told})


def empty_classifier(path: str, shapes: dict[str, tuple[int, ...]]) -> Any:
    """Transformers' sequence classification for a model, without memory for its weights.

    Args:
        path: of the language model.
        shapes: of the weights that it is to have.

    Raises:
        ModelError: it has others, or there is none.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(path, num_labels=1)
    if config.pad_token_id is None:  # where a sequence ends is where its padding begins
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        config.pad_token_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ModelError(
            f"model.path = {path!r}: transformers has no sequence classification for it: {error}"
        ) from error
    found = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    if found != shapes:
        odd = sorted(found.items() ^ shapes.items())[0]
        raise ModelError(
            f"model.path = {path!r}: {type(model).__name__} and a scorer differ in {odd[0]} of shape {odd[1]}; "
            "choose an architecture whose sequence classification is a linear layer 'score' without a bias"
        )
    return model


def write_classifier(path: str, tensors: dict[str, torch.Tensor], target: Path) -> None:
    """Writes a directory that ``AutoModelForSequenceClassification`` loads, with the model's tokenizer.

    Args:
        path: of the language model that it was made of.
        tensors: as :meth:`Scorer.by_name` names them.
        target: an existing directory.
    """
    from transformers import AutoTokenizer

    model = empty_classifier(path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    dtype = next(iter(tensors.values())).dtype
    whole = {name: tensor.detach().to("cpu", dtype) for name, tensor in tensors.items()}
    model.load_state_dict(whole, assign=True)
    model.config.dtype = dtype
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(path, local_files_only=True).save_pretrained(target)
