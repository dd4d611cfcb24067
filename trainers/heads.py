"""A number for each token: the head of a value function, a critic or a reward model.

Shape suffixes: R tokens that get a number, D width of the model.
"""
# ruff: noqa: N803 - the suffixes are the shapes

from typing import Any

import torch


class ScalarHead(torch.nn.Linear):
    """One weight for each number of a hidden state, as ``num_labels=1`` of transformers has it: no bias.

    It begins with zeros, so with values of 0. It computes in float32; in a run in bfloat16 DeepSpeed keeps its
    weights as it keeps all others, in bfloat16 with a copy in float32 that the optimizer steps on.
    """

    def __init__(self, language_model: Any) -> None:
        width = int(language_model.config.get_text_config().hidden_size)
        super().__init__(width, 1, bias=False, device=language_model.device, dtype=torch.float32)
        torch.nn.init.zeros_(self.weight)

    def forward(self, hidden_RD: torch.Tensor) -> torch.Tensor:
        """float32 numbers_R of hidden states."""
        return torch.nn.functional.linear(hidden_RD.float(), self.weight.float())[:, 0]
