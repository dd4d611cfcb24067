"""How a model asks for a tool: one JSON object, as the chat templates of Qwen and others teach it.

    <tool_call>{"name": "get_order_details", "arguments": {"order_id": "#W2378156"}}</tool_call>

The tags may be left out, and words may stand before the object. What stands beside a call is not said to the user; of
several calls the first is made, as in tau-bench. An answer without a call is said to the user.
"""

import json
import re
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schemas.records import first_fault

LONGEST_CHARACTERS: Final = 20_000
"""Of a call: the longest of the benchmark's own has 400."""
_TAG: Final = "<tool_call>"
_BARE: Final = re.compile(r'\{\s*"name"\s*:')
_FENCE: Final = re.compile(r"\s*(?:```(?:json)?\s*)?(?=\{)")
_DECODER: Final = json.JSONDecoder()
_FORM: Final = 'expected {"name": ..., "arguments": {...}}'


class BadCall(ValueError):
    """The model meant to call a tool, and it cannot be understood; in words for the model."""


class ToolCall(BaseModel):
    """A tool and what it is given. Example: ``{"name": "think", "arguments": {"thought": "…"}}``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=128)
    arguments: dict[str, Any] = Field(default_factory=dict)
    """By their names."""


def find_call(text: str) -> ToolCall | None:
    """The first call of an answer, None if it has none.

    Raises:
        BadCall: there is one, but not in the form.
    """
    start = _start(text)
    return None if start is None else _parse(text[start : start + LONGEST_CHARACTERS].lstrip())


def _start(text: str) -> int | None:
    """Where a call begins that is meant as one."""
    if (tag := text.find(_TAG)) >= 0:
        return tag + len(_TAG)
    if alone := _FENCE.match(text):
        return alone.end()
    bare = _BARE.search(text)
    return bare.start() if bare else None


def _parse(text: str) -> ToolCall:
    try:
        _, end = _DECODER.raw_decode(text)
        return ToolCall.model_validate_json(text[:end])
    except ValidationError as error:
        raise BadCall(f"not a tool call: {first_fault(error)}; {_FORM}") from error
    except (ValueError, RecursionError) as error:
        raise BadCall(f"not a tool call: no JSON object of at most {LONGEST_CHARACTERS} characters; {_FORM}") from error
