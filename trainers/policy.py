"""The model that is trained: a Hugging Face causal language model, asked for logprobs only.

They are computed for chosen tokens and in chunks, so that the logits of a whole sequence never exist.

Shape suffixes: N tokens of a pack, R trained tokens, C tokens of a chunk, D width of the model, V vocabulary.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

from pathlib import Path
from typing import Any, Final

import torch
from torch.utils.checkpoint import checkpoint

from schemas.errors import ModelError

_CHUNK_LOGITS: Final = 1 << 25
"""Most logits that exist at once: 128 MiB in float32."""

_GUARD_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.15}
"""Mean difference in nats: rounding stays an order of magnitude below, a real difference does not."""


def load_model(path: str, dtype: torch.dtype) -> Any:
    """Loads a causal language model.

    Raises:
        ModelError: the directory is missing or incomplete, or cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    directory = Path(path)
    if not (directory / "config.json").is_file():
        raise ModelError(f"model.path = {path!r} is not a model directory (no config.json); give a Hugging Face one")
    if not list(directory.glob("*.safetensors")):
        raise ModelError(f"model.path = {path!r} has no *.safetensors; convert the model with save_pretrained")
    try:
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype, attn_implementation="sdpa")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"model.path = {path!r} cannot be loaded: {error}") from error
    return model.eval()  # no dropout: the behaviour policy has none


class Policy(torch.nn.Module):
    """The language model, asked for logprobs at the temperature of the run."""

    def __init__(self, causal: Any, temperature: float) -> None:
        super().__init__()
        self.causal = causal
        self.temperature = temperature

    def forward(
        self, token_ids_N: torch.Tensor, position_ids_N: torch.Tensor, index_R: torch.Tensor, target_R: torch.Tensor
    ) -> torch.Tensor:
        """float32 logprobs_R of the targets, under the distribution that sampling draws from."""
        body = self.causal.base_model
        output = body(input_ids=token_ids_N[None], position_ids=position_ids_N[None], use_cache=False)
        hidden_RD = output.last_hidden_state[0][index_R]
        size = max(1, _CHUNK_LOGITS // self.causal.config.get_text_config().vocab_size)
        chunks = zip(torch.split(hidden_RD, size), torch.split(target_R, size), strict=True)
        return torch.cat([self._chunk(hidden_CD, target_C) for hidden_CD, target_C in chunks])

    def _chunk(self, hidden_CD: torch.Tensor, target_C: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return self._logprobs(hidden_CD, target_C)
        logprobs_C: torch.Tensor = checkpoint(self._logprobs, hidden_CD, target_C, use_reentrant=False)
        return logprobs_C

    def _logprobs(self, hidden_CD: torch.Tensor, target_C: torch.Tensor) -> torch.Tensor:
        logits_CV = self.causal.get_output_embeddings()(hidden_CD).float() / self.temperature
        chosen_C = logits_CV.gather(1, target_C[:, None])[:, 0]
        logprobs_C: torch.Tensor = chosen_C - torch.logsumexp(logits_CV, dim=1)
        return logprobs_C

    def weights(self) -> dict[str, torch.Tensor]:
        """All weights under Hugging Face names, where they are; of tensors that are tied only the first."""
        from transformers.core_model_loading import revert_weight_conversion

        seen: set[tuple[int, tuple[int, ...]]] = set()
        tensors = {}
        for name, tensor in self.causal.state_dict().items():
            place = (tensor.data_ptr(), tuple(tensor.shape))
            if place not in seen:
                seen.add(place)
                tensors[name] = tensor.detach()
        reverted: dict[str, torch.Tensor] = revert_weight_conversion(self.causal, tensors)
        return {name: tensor.contiguous() for name, tensor in reverted.items()}

    @torch.no_grad()
    def probe(self, token_ids: list[int]) -> list[float]:
        """Logprob at temperature 1 of each token but the first, by the model's own forward pass."""
        tokens_N = torch.tensor(token_ids, device=self.causal.device)
        logits_NV = self.causal(input_ids=tokens_N[None], use_cache=False).logits[0, :-1].float()
        logprobs: list[float] = logits_NV.log_softmax(1).gather(1, tokens_N[1:, None])[:, 0].tolist()
        return logprobs

    @torch.no_grad()
    def check(self, token_ids: list[int]) -> None:
        """Compares this module's logprobs of two packed sequences with the model's own of one.

        Raises:
            ModelError: the model changes its logits after the head, or does not keep packed sequences apart.
        """
        length = len(token_ids)
        tokens_N = torch.tensor(token_ids * 2, device=self.causal.device)
        positions_N = torch.arange(length, device=tokens_N.device).repeat(2)
        index_R = torch.cat([torch.arange(length - 1), torch.arange(length, 2 * length - 1)]).to(tokens_N.device)
        temperature, self.temperature = self.temperature, 1.0
        found_R = self(tokens_N, positions_N, index_R, tokens_N[index_R + 1])
        self.temperature = temperature
        expected_R = torch.tensor(self.probe(token_ids) * 2, device=found_R.device)
        gap = float((found_R - expected_R).abs().mean())
        tolerance = _GUARD_TOLERANCE[self.causal.dtype]
        if not gap <= tolerance:
            raise ModelError(
                f"{type(self.causal).__name__}: logprobs of packed sequences are {gap:.3g} nats away from the model's "
                f"own, expected at most {tolerance}; this architecture cannot be trained packed, choose another"
            )
