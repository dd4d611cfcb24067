"""A sequence classifier with one label: an answer goes in, a number comes out.

    ScoreRequest ──► token ids, as given or of its text ──► rows, padded on the right ──► one forward pass ──► numbers

A decoder (a language model with the linear head ``score``) is read after its last token. transformers finds that
place by looking for the padding token, which in many models is also the token that ends an answer: so rows are padded
with a token that none of them ends with.

Shape suffixes: B rows, T tokens of the longest.
"""
# ruff: noqa: N806 - the suffixes are the shapes

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from schemas.errors import ModelError, RecordError
from schemas.manifests import MANIFEST_NAME
from schemas.scoring import ScoreRequest, ScorerServerConfig
from transforms.rewards.judge import defuse
from transforms.rewards.vocabulary import vocabulary_hash

_LOG = structlog.get_logger(__name__)
_TOLERANCE: Final = {"float32": 1e-3, "bfloat16": 0.1}
"""How far from the scores of its manifest a model may be, as a share of their size or of 1."""

Read = Literal["token_ids", "text"]


class Classifier:
    """A model directory, loaded. Texts may be read in several threads; rows are scored in one.

    Args:
        config: of the server.

    Raises:
        ModelError: the directory is not that of a sequence classifier with one label, or its numbers are not those
            that its manifest names.
    """

    def __init__(self, config: ScorerServerConfig) -> None:
        self.device, self._dtype_name = place_and_format(config)
        self._model = _load(config.model, self.device, self._dtype_name)
        self._tokenizer = _load_tokenizer(config.model)
        self._lock = threading.Lock()
        self._vocabulary = vocabulary_hash(config.model)
        text_config = self._model.config.get_text_config()
        self.vocabulary_tokens: int = text_config.vocab_size
        self.max_tokens: int = config.max_tokens or _positions(self._model, text_config)
        self._is_decoder = hasattr(self._model, "score")
        self._check_probe(Path(config.model, MANIFEST_NAME))

    def knows(self, vocabulary: str | None) -> bool:
        """Whether token ids of that vocabulary mean the same to this model."""
        return vocabulary == self._vocabulary

    def read(self, request: ScoreRequest) -> tuple[tuple[int, ...], Read]:
        """The token ids to be scored, and what they were taken from.

        Raises:
            RecordError: the model cannot read it: no text, an unknown token, too long.
        """
        knows = self.knows(request.vocabulary)
        ids = (*request.prompt_token_ids, *request.response_token_ids) if knows else self._encode(request)
        if not ids or max(ids) >= self.vocabulary_tokens:
            raise RecordError("bad_token", f"expected one or more token ids below {self.vocabulary_tokens}")
        if len(ids) > self.max_tokens:
            raise RecordError("too_long", f"{len(ids)} tokens, this model takes {self.max_tokens}")
        return ids, "token_ids" if knows else "text"

    def _encode(self, request: ScoreRequest) -> tuple[int, ...]:
        try:
            with self._lock:
                return tuple(self._encode_text(request))
        except RecordError:
            raise
        except Exception as error:  # a seam: templates are programs of the model's maker
            raise RecordError("bad_text", f"the classifier's tokenizer refuses the text: {error}") from error

    def _encode_text(self, request: ScoreRequest) -> Sequence[int]:
        if request.text is not None:
            whole: Sequence[int] = self._tokenizer.encode(request.text + request.response_text)
            return whole
        if request.messages is None:
            raise RecordError("bad_text", "the prompt is token ids of another vocabulary, and there is no text of it")
        turns = [each.model_dump() for each in request.messages]
        turns.append({"role": "assistant", "content": defuse(request.response_text)})  # no turn of its own making
        text = self._tokenizer.apply_chat_template(turns, tokenize=False)
        rendered: Sequence[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return rendered

    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """The number of each row, by one forward pass."""
        import torch

        pad = self._padding(rows)
        longest = max(map(len, rows))
        ids_BT = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=self.device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self.device)
        with torch.inference_mode():
            logits_B = self._model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0]
        numbers: list[float] = logits_B.float().tolist()
        return numbers

    def _padding(self, rows: Sequence[Sequence[int]]) -> int:
        """A token that no row ends with, told to the model; an encoder keeps its own, which it does not look for."""
        text_config = self._model.config.get_text_config()
        if not self._is_decoder:
            return int(text_config.pad_token_id or 0)
        ends = {row[-1] for row in rows}
        text_config.pad_token_id = next(token for token in range(self.vocabulary_tokens) if token not in ends)
        return int(text_config.pad_token_id)

    def _check_probe(self, manifest: Path) -> None:
        """Compares with what the trainer of the model found, if that left word."""
        try:
            probe = json.loads(manifest.read_text())["facts"]["probe"]
            rows, expected = [[int(token) for token in probe["token_ids"]]], float(probe["scores"][-1])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise ModelError(f"{manifest}: it has no probe ({error!r}); export the model again") from error
        found = self.score(rows)[0]
        allowed = _TOLERANCE[self._dtype_name] * max(1.0, abs(expected))
        if not abs(found - expected) <= allowed:
            raise ModelError(
                f"{manifest}: the model gives {found:.6g} for its probe where its trainer found {expected:.6g}, "
                f"expected a difference of at most {allowed:.3g}; a file was changed or is incomplete"
            )
        _LOG.info("probe", found=round(found, 6), expected=round(expected, 6))


def place_and_format(config: ScorerServerConfig) -> tuple[str, str]:
    """Device and number format."""
    import torch

    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.dtype != "auto":
        return device, config.dtype
    return device, "bfloat16" if device == "cuda" else "float32"


def _positions(model: Any, text_config: Any) -> int:
    """The most tokens that the model has positions for; a large number if it has no limit.

    RoBERTa and its kin count positions from behind that of padding, so that as many rows of the table are never used.
    """
    rows: int = getattr(text_config, "max_position_embeddings", None) or 1 << 20
    tables = (part for name, part in model.named_modules() if name.endswith("position_embeddings"))
    padding = [table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None]
    return rows - padding[0] - 1 if padding else rows


def _load_tokenizer(directory: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except Exception as error:  # it raises whatever its files make it
        raise ModelError(f"--model {directory}: its tokenizer cannot be loaded: {error}") from error


def _load(directory: str, device: str, dtype: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    try:
        found = AutoConfig.from_pretrained(directory, local_files_only=True)
        if found.num_labels != 1 or not any("SequenceClassification" in name for name in found.architectures or ()):
            raise ModelError(
                f"--model {directory}: {found.architectures} with {found.num_labels} labels, expected a sequence "
                "classifier with one; give a directory such as asyncflow learn-scorer writes"
            )
        model, told = AutoModelForSequenceClassification.from_pretrained(
            directory,
            dtype=getattr(torch, dtype),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"--model {directory}: it cannot be loaded: {error}") from error
    if told["missing_keys"]:
        raise ModelError(f"--model {directory}: weights are missing: {', '.join(sorted(told['missing_keys'])[:5])}")
    return model.to(device).eval()
