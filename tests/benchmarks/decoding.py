"""Answers of one length to prompts of one length, on a GPU as one CUDA graph: there launching kernels takes longest.

    tokens_BP ─► layers ─► token ─► layers ─► token ─► … ─► answers_BT, their logprobs_BT
                   └────────┴── keys and values of all tokens so far

The layers are transformers' own; only the loop around them is here, because ``generate`` waits for the device at every
token. A graph reads the weights where they lie: overwrite them in place and it answers by the new ones.

Shape suffixes: B answers, P tokens of a prompt, T of an answer, V vocabulary, K heads of keys, D width of a head.
"""
# ruff: noqa: N803, N806 - the suffixes are the shapes

from functools import cache

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "asyncflow_decoding"
WARM_UPS = 2
"""Before a graph is captured: libraries make room for themselves at first use."""


class Decoder:
    """Answers by a model, whose weights may be overwritten in place at any time.

    Args:
        model: a causal language model of transformers whose layers attend to all tokens before.
        tokens: T; answers do not end earlier.
    """

    def __init__(self, model, tokens):
        AttentionInterface.register(ATTENTION, _attend)
        model.set_attn_implementation(ATTENTION)
        self.model, self.tokens = model, tokens
        self.device = model.device
        self._captured = cache(self._capture)

    @torch.no_grad()
    def answer(self, tokens_BP, *, greedy):
        """The answers and their logprobs at temperature 1, both of shape B, T."""
        if self.device.type != "cuda":
            return self._compute(tokens_BP, greedy)
        graph, asked_BP, given = self._captured(tuple(tokens_BP.shape), greedy)
        asked_BP.copy_(tokens_BP)
        graph.replay()
        return tuple(tensor.clone() for tensor in given)

    @torch.no_grad()
    def logprobs(self, tokens_BP, answers_BT):
        """Those of given answers, all tokens of a sequence at once."""
        length = tokens_BP.shape[1]
        sequences = torch.cat([tokens_BP, answers_BT], 1)
        logits_BTV = self._logits(sequences, 0, _Memory())[:, length - 1 : -1]
        return logits_BTV.float().log_softmax(2).gather(2, answers_BT[:, :, None])[:, :, 0]

    def _capture(self, shape, greedy):
        asked_BP = torch.zeros(shape, dtype=torch.long, device=self.device)
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                self._compute(asked_BP, greedy)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            given = self._compute(asked_BP, greedy)
        return graph, asked_BP, given

    def _compute(self, tokens_BP, greedy):
        memory, start, found = _Memory(), 0, []
        asked = tokens_BP
        for _ in range(self.tokens):
            logprobs_BV = self._logits(asked, start, memory, last=True)[:, 0].float().log_softmax(1)
            start += asked.shape[1]
            chosen_B = (logprobs_BV if greedy else logprobs_BV - _noise(logprobs_BV)).argmax(1)
            found.append((chosen_B, logprobs_BV.gather(1, chosen_B[:, None])[:, 0]))
            asked = chosen_B[:, None]
        return tuple(torch.stack(each, 1) for each in zip(*found, strict=True))

    def _logits(self, tokens_BN, start, memory, *, last=False):
        """Of the tokens from place ``start`` on, or of the last of them."""
        body = self.model.base_model
        hidden_BND = body.embed_tokens(tokens_BN)
        places = torch.arange(start, start + tokens_BN.shape[1], device=self.device)[None]
        turned = body.rotary_emb(hidden_BND, position_ids=places)
        for layer in body.layers:
            hidden_BND = layer(hidden_BND, position_embeddings=turned, past_key_values=memory)
        return self.model.lm_head(body.norm(hidden_BND[:, -1:] if last else hidden_BND))


class _Memory(dict):
    """Keys and values by layer, as far as layers ask for them."""

    def update(self, key, value, layer, *_, **__):
        before = self.get(layer)
        self[layer] = (key, value) if before is None else tuple(
            torch.cat(pair, 2) for pair in zip(before, (key, value), strict=True))  # fmt: skip
        return self[layer]


def _noise(logprobs_BV):
    """Whoever has the largest logprob less this is drawn with its probability (Gumbel)."""
    return torch.empty_like(logprobs_BV).exponential_().log_()


def _attend(module, query, key, value, attention_mask=None, *, scaling=None, **_):
    """A prompt's tokens see those before them; a later token, which comes alone, sees all."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    causal = query.shape[2] > 1
    return scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scaling).transpose(1, 2), None
