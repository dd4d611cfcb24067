"""Text to token ids and back, by the tokenizer of the model that is trained.

Response token ids come from the engine and are never made from text again; decoding is for people
and for rewards.
"""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from schemas.errors import ModelError, RecordError
from schemas.prompts import Prompt


class Tokenizer:
    """The model's tokenizer and the size of its vocabulary. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, vocabulary_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._lock = threading.Lock()
        self.vocabulary_tokens = vocabulary_tokens

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Reads the tokenizer of a model directory.

        Raises:
            ModelError: the directory or one of its files is missing or unreadable.
        """
        from transformers import AutoTokenizer

        vocabulary_tokens = read_vocabulary_tokens(path)
        try:
            return cls(AutoTokenizer.from_pretrained(path, local_files_only=True), vocabulary_tokens)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"model.path = {path!r}: its tokenizer cannot be read: {error}") from error

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """The prompt's token ids.

        Raises:
            RecordError: ``bad_text`` or ``bad_token``.
        """
        ids = prompt.token_ids if prompt.token_ids is not None else self._encode_text(prompt)
        if not ids:
            raise RecordError("bad_token", "the prompt has no tokens")
        if max(ids) >= self.vocabulary_tokens:
            raise RecordError(
                "bad_token", f"token id {max(ids)} is beyond the model's vocabulary of {self.vocabulary_tokens}"
            )
        return ids

    def _encode_text(self, prompt: Prompt) -> tuple[int, ...]:
        try:
            with self._lock:
                return tuple(self._encode_chat(prompt) if prompt.text is None else self._tokenizer.encode(prompt.text))
        except Exception as error:  # a seam: templates are programs of the model's maker
            raise RecordError("bad_text", f"the model's tokenizer refuses the prompt: {error}") from error

    def _encode_chat(self, prompt: Prompt) -> Sequence[int]:
        messages = [message.model_dump() for message in prompt.messages or ()]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """The text of each response, without special tokens."""
        with self._lock:
            texts: list[str] = self._tokenizer.batch_decode([list(ids) for ids in responses], skip_special_tokens=True)
            return texts


def read_vocabulary_tokens(path: str) -> int:
    """``vocab_size`` of a model directory's config.json: rows of its embedding.

    Raises:
        ModelError: there is none.
    """
    file = Path(path) / "config.json"
    try:
        config = json.loads(file.read_text())
        return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model.path = {path!r}: {file} gives no vocab_size ({error}); "
            "expected a Hugging Face directory with config.json, tokenizer and safetensors"
        ) from error
