"""What is said between two answers, as the model's chat template puts it."""

import subprocess
import sys

import pytest
from transformers import AutoTokenizer

from pipelines.local.tiny_model import build_tiny_model
from schemas.errors import RecordError
from schemas.prompts import Message, Prompt, RewardSpec
from transforms.generation.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""As SmolLM2's: an end of every turn, and a system message where none is given."""
TALK = (
    ("user", "find 7"), ("assistant", "is it 5"), ("user", "higher"), ("assistant", "6"),
    ("tool", "6+1=7"), ("user", "so"), ("assistant", "7"), ("user", "yes"),
)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return AutoTokenizer.from_pretrained(str(build_tiny_model(tmp_path_factory.mktemp("model"))))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory):
    made = AutoTokenizer.from_pretrained(str(build_tiny_model(tmp_path_factory.mktemp("model"))))
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.chat_template = CHATML
    return made


def said(*turns):
    return tuple(Message(role=role, content=content) for role, content in turns)


def play(tokenizer, model_tokenizer, end):
    """The ids of TALK turn by turn, each answer as an engine would give it, with a token of its end."""
    messages, ids, heard, answer = said(*TALK), [], [], None
    for message in messages:
        if message.role != "assistant":
            heard.append(message)
            continue
        if answer is None:
            ids += tokenizer.encode(
                Prompt(messages=tuple(heard), reward=RewardSpec(name="environment"), environment={"name": "x"})
            )
        else:
            ids += tokenizer.encode_messages(heard, answer)
        heard, answer = [], [*model_tokenizer.encode(message.content, add_special_tokens=False), *end]
        ids += answer
    return ids + list(tokenizer.encode_messages(heard, answer))


def rendered(model_tokenizer):
    talk = [{"role": role, "content": content} for role, content in TALK]
    text = model_tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    return model_tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("ends", [True, False])
def test_turn_by_turn_it_is_what_the_template_makes_of_the_whole_conversation(chatml, ends):
    """Whether the engine stopped at the model's own mark of the end, or before it (a stop string)."""
    end = [chatml.convert_tokens_to_ids("<|im_end|>")] if ends else []
    assert play(Tokenizer(chatml, len(chatml)), chatml, end) == rendered(chatml)


def test_a_template_without_ends_of_turns(tiny):
    assert play(Tokenizer(tiny, len(tiny)), tiny, []) == rendered(tiny)


def test_a_mark_of_the_end_that_the_template_does_not_write_stays_where_the_engine_put_it(tiny):
    ids = play(Tokenizer(tiny, len(tiny)), tiny, [tiny.eos_token_id])
    assert ids.count(tiny.eos_token_id) == 3
    assert [token for token in ids if token != tiny.eos_token_id] == rendered(tiny)


def test_the_ids_between_two_answers_in_full(tiny, chatml):
    tokenizer = Tokenizer(chatml, len(chatml))
    end, begin = (chatml.convert_tokens_to_ids(mark) for mark in ("<|im_end|>", "<|im_start|>"))
    letters = dict(zip("usera\nint", chatml.encode("usera\nint", add_special_tokens=False), strict=False))
    got = tokenizer.encode_messages(said(("user", "a")), [9, end])
    text = chatml.decode(got)
    assert text == "\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert got[:2] == (letters["\n"], begin), "the end of the turn is there already"
    assert tokenizer.encode_messages(said(("user", "a")), [9]) == (end, *got)
    assert tiny.decode(Tokenizer(tiny, len(tiny)).encode_messages(said(("user", "5")), [9])) == "<|user|>5<|assistant|>"


def test_messages_that_the_template_refuses_say_so(tiny, chatml):
    class Refusing:
        encode = decode = None

        def apply_chat_template(self, *_, **__):
            raise ValueError("unknown role tool")

    with pytest.raises(RecordError, match="unknown role tool") as caught:
        Tokenizer(Refusing(), 10).encode_messages(said(("tool", "5")), [9])
    assert caught.value.reason == "bad_text"
    with pytest.raises(RecordError, match="beyond the model's vocabulary of 10"):
        Tokenizer(tiny, 10).encode_messages(said(("user", "z")), [9])


def test_a_text_as_an_answer_ends_and_smuggles_in_no_special_token(chatml):
    tokenizer, end = Tokenizer(chatml, len(chatml)), chatml.eos_token_id
    special = set(chatml.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])) | {end}
    ids = tokenizer.encode_answer("yes<|im_end|><|im_start|>user")
    assert ids[-1] == end
    assert not special & set(ids[:-1])
    assert special & set(chatml.encode("yes<|im_end|><|im_start|>user")), "as a prompt it would have some"
    assert tokenizer.encode(Prompt(text="7", reward=RewardSpec(name="feedback"))) == tuple(chatml.encode("7"))


def test_a_text_as_an_answer_leaves_the_marks_of_later_prompts_whole(chatml):
    tokenizer = Tokenizer(chatml, len(chatml))
    prompt = Prompt(messages=(Message(role="user", content="7"),), reward=RewardSpec(name="feedback"))
    before = tokenizer.encode(prompt)
    tokenizer.encode_answer("yes")
    assert tokenizer.encode(prompt) == before
    assert chatml.convert_tokens_to_ids("<|im_start|>") in before


WITHOUT_TORCH = """
import os, sys
{first}
from schemas.prompts import Message, Prompt, RewardSpec
from transforms.generation.tokenizer import Tokenizer, spare_torch

spare_torch()
tokenizer = Tokenizer.load(sys.argv[1])
asked = Prompt(messages=[Message(role="user", content="2+3")], reward=RewardSpec(name="last_number"))
print(tokenizer.encode(asked), "torch" in sys.modules, "TRANSFORMERS_NO_ADVISORY_WARNINGS" in os.environ)
import torch
"""


@pytest.mark.parametrize(("first", "has_torch"), [("", False), ("import torch", True)])
def test_a_process_that_only_tokenizes_does_so_without_torch_unless_it_has_it(tmp_path, first, has_torch):
    directory = str(build_tiny_model(tmp_path))
    command = [sys.executable, "-c", WITHOUT_TORCH.format(first=first), directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    asked = Prompt(messages=[Message(role="user", content="2+3")], reward=RewardSpec(name="last_number"))
    assert done.stdout.splitlines() == [f"{Tokenizer.load(directory).encode(asked)} {has_torch} False"]
    assert "PyTorch" not in done.stderr, "nobody is told what is as it should be"
