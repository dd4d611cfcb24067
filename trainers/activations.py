"""Activation checkpointing without dropout.

transformers computes a layer's activations again in the backward pass only where the layer is in training mode,
and training mode turns dropout on, which the policy that drew the samples did not have. So the layers alone are put
into it, and nothing inside of them.
"""

from typing import Any

from schemas.errors import ModelError


def prepare(causal: Any, *, checkpointing: bool) -> None:
    """Puts a Hugging Face model into evaluation mode; with ``checkpointing`` its layers keep only their inputs.

    Raises:
        ModelError: the architecture cannot do that.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    causal.eval()
    if not checkpointing:
        return
    if not causal.supports_gradient_checkpointing:
        raise ModelError(
            f"learner.activation_checkpointing = true: {type(causal).__name__} does not support it; set it to false"
        )
    causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in causal.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
