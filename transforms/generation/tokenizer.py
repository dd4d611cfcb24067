"""Text to token ids and back, by the tokenizer of the model that is trained.

Response token ids come from the engine and are never made from text again; decoding is for people
and for rewards. What an environment says between two answers is what the chat template adds to the
conversation: the end of the answer's turn, the messages, and the beginning of the next answer's turn.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from schemas.errors import ModelError, RecordError
from schemas.prompts import Message, Prompt

_QUESTION: Final = Message(role="user", content="question")
_ANSWER: Final = Message(role="assistant", content="answer-c58e1f")
"""Stand for a conversation so far; the text of the answer occurs in no template."""


_IMPORTING: Final = threading.Lock()
"""Held while transformers is imported: a second thread that imports it meanwhile finds it without its classes, and a
worker of Beam sets up several steps at once."""
_QUIET: Final = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
"""Or else transformers says that without torch it has no models."""
_SPARES_TORCH: Final = threading.Event()


def spare_torch() -> None:
    """Has this process load tokenizers as where torch is not installed: that saves 3.5 s of a core and 600 MiB.

    For processes that use transformers for nothing else: in these it says from then on that there is no torch. One
    that has imported either before, such as for a user's reward, goes on with both.
    """
    _SPARES_TORCH.set()


@contextlib.contextmanager
def _torch_as_wanted() -> Iterator[None]:
    """While it is open, an import looks for torch in vain, if it is to be spared and still can be."""
    if not _SPARES_TORCH.is_set() or "torch" in sys.modules or "transformers" in sys.modules:
        yield
        return
    quiet = os.environ.get(_QUIET)
    os.environ[_QUIET], sys.modules["torch"] = "1", None  # type: ignore[assignment]  # as find_spec has it
    try:
        yield
    finally:
        del sys.modules["torch"], os.environ[_QUIET]
        if quiet is not None:
            os.environ[_QUIET] = quiet


class Tokenizer:
    """The model's tokenizer and the size of its vocabulary. Safe to use from several threads."""

    def __init__(self, tokenizer: Any, vocabulary_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._encode_plain, self._decode_plain = _plain_calls(tokenizer)
        self._lock = threading.Lock()
        self.vocabulary_tokens = vocabulary_tokens

    @classmethod
    def load(cls, path: str) -> "Tokenizer":
        """Reads the tokenizer of a model directory.

        Raises:
            ModelError: the directory or one of its files is missing or unreadable.
        """
        with _IMPORTING, _torch_as_wanted():
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
        return self._checked(ids)

    def encode_messages(self, messages: Sequence[Message], answer: Sequence[int]) -> tuple[int, ...]:
        """The token ids between an answer and the next one.

        Args:
            messages: what is said in between.
            answer: the answer's token ids; a mark of its end that it has written itself is not repeated.

        Raises:
            RecordError: ``bad_text`` or ``bad_token``.
        """
        ids = self._checked(self._encode(lambda: self._encode_after(messages)))
        return ids[1:] if ids[:1] == tuple(answer[-1:]) else ids

    def encode_answer(self, text: str) -> tuple[int, ...]:
        """The token ids of a text as the model's own answer, the mark of its end included.

        What looks like a special token in it stays text: nobody's answer ends a turn or begins another one.

        Raises:
            RecordError: ``bad_text`` or ``bad_token``.
        """
        end = self._tokenizer.eos_token_id
        ids = self._encode(lambda: self._encode_literally(text))
        return self._checked((*ids, end) if end is not None else ids)

    def _encode_literally(self, text: str) -> Sequence[int]:
        plain = {"add_special_tokens": False}
        try:
            ids: Sequence[int] = self._tokenizer.encode(text, split_special_tokens=True, **plain)
            return ids
        finally:  # the tokenizer's Rust part keeps the setting, and would split the marks of the next prompt's turns
            self._tokenizer.encode("", split_special_tokens=False, **plain)

    def _checked(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        if not ids:
            raise RecordError("bad_token", "the prompt has no tokens")
        if max(ids) >= self.vocabulary_tokens:
            raise RecordError(
                "bad_token", f"token id {max(ids)} is beyond the model's vocabulary of {self.vocabulary_tokens}"
            )
        return ids

    def _encode_text(self, prompt: Prompt) -> tuple[int, ...]:
        if prompt.text is not None:
            return self._encode(lambda: self._tokenizer.encode(prompt.text))
        return self._encode(lambda: self._encode_rendered(self._render(prompt.messages or ())))

    def _encode(self, encode: Callable[[], Sequence[int]]) -> tuple[int, ...]:
        try:
            with self._lock:
                return tuple(encode())
        except Exception as error:  # a seam: templates are programs of the model's maker
            raise RecordError("bad_text", f"the model's tokenizer refuses the prompt: {error}") from error

    def _encode_after(self, messages: Sequence[Message]) -> Sequence[int]:
        text = self._render((_QUESTION, _ANSWER, *messages))
        return self._encode_rendered(text.split(_ANSWER.content, 1)[1])

    def _render(self, messages: Sequence[Message]) -> str:
        given = [message.model_dump() for message in messages]
        text: str = self._tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
        return text

    def _encode_rendered(self, text: str) -> Sequence[int]:
        return self._encode_plain(text, add_special_tokens=False)

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """The text of each response, without special tokens."""
        with self._lock:
            return [self._decode_plain(list(ids), skip_special_tokens=True) for ids in responses]


def _plain_calls(tokenizer: Any) -> tuple[Callable[..., Sequence[int]], Callable[..., str]]:
    """Encoding and decoding by the tokenizer's own Rust part where it has one.

    What transformers wraps around it gives the same here and takes three times as long.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.clean_up_tokenization_spaces:
        return tokenizer.encode, tokenizer.decode
    return lambda text, **options: backend.encode(text, **options).ids, backend.decode


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
