"""Model directories with weights of a few numbers, made without torch: for whatever reads heads and not weights."""

import json

import numpy as np
from safetensors.numpy import save_file

SHAPES = {
    "model.embed_tokens.weight": (16, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.norm.weight": (8,),
}
PARAMETERS = 16 * 8 + 8 * 8 + 12 * 8 + 8
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "hidden_size": 8,
    "max_position_embeddings": 4096,
    "vocab_size": 16,
}


def write_model(directory, **config):
    """A directory that looks like a model; returns it."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    (directory / "tokenizer.json").write_text("{}")
    return directory
