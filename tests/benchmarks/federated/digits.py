"""A task that sites can share out: a digit between two letters asks for another digit.

    <|user|> c 7 k <|assistant|> ──► one token; right is 3 * 7 + 1 = 22 → 2

A site sees the digits that it is given, and can learn nothing of the others. Held out are pairs of letters that nobody
trains on, of all digits.
"""

import random

import numpy as np

DIGITS = tuple(range(10))
LETTERS = tuple(range(12))
_FIRST_DIGIT, _FIRST_LETTER, _USER, _ASSISTANT = 6, 29, 3, 4
"""Token ids of the tiny model."""
_HELD_OUT = 5


def answer(digit):
    """The token that is right."""
    return _FIRST_DIGIT + (3 * digit + 1) % 10


def prompt(digit, left, right):
    """Token ids; letters by their number."""
    return (_USER, _FIRST_LETTER + left, _FIRST_DIGIT + digit, _FIRST_LETTER + right, _ASSISTANT)


def digit_of(token_ids):
    """The digit that a prompt asks about."""
    return token_ids[2] - _FIRST_DIGIT


def training_prompts(digits, number, seed):
    """Token ids of so many prompts about some of the digits."""
    chance = random.Random(seed)
    pairs = [(left, right) for left in LETTERS for right in LETTERS if (left + right) % _HELD_OUT]
    return [prompt(chance.choice(digits), *chance.choice(pairs)) for _ in range(number)]


def held_out_prompts():
    """All that are never trained."""
    return [prompt(digit, left, right) for digit in DIGITS for left in LETTERS for right in LETTERS
            if not (left + right) % _HELD_OUT]  # fmt: skip


def build_model(directory, seed):
    """The tiny model, which has learned to answer with a digit, any of them; returns the directory."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipelines.local.tiny_model import build_tiny_model

    build_tiny_model(directory, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(directory)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    torch.manual_seed(seed)
    tokens = torch.tensor(training_prompts(DIGITS, 512, seed))
    for _ in range(40):
        target = torch.randint(_FIRST_DIGIT, _FIRST_DIGIT + 10, (len(tokens),))
        loss = torch.nn.functional.cross_entropy(model(tokens).logits[:, -1], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(directory)
    return directory


class Judge:
    """Greedy accuracy on what is held out, for weights by their names."""

    def __init__(self, model_dir):
        import torch
        from transformers import AutoModelForCausalLM

        self._model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
        self._tokens = torch.tensor(held_out_prompts())
        self._right = np.array([answer(digit_of(each)) for each in self._tokens.tolist()])

    def accuracy(self, file):
        """Of a safetensors file."""
        import torch
        from safetensors.torch import load_file

        self._model.load_state_dict(load_file(file), strict=False)
        with torch.no_grad():
            chosen = self._model(self._tokens).logits[:, -1].argmax(1).numpy()
        return float((chosen == self._right).mean())
