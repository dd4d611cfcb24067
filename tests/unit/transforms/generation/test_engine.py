"""An engine's answer is distrusted: a malformed one is an error, never a row."""

import json
from datetime import UTC, datetime

import pytest

from schemas.errors import EngineError
from schemas.identity import GroupId
from schemas.prompts import Prompt
from schemas.trajectories import Span, decode, encode
from transforms.generation.engine import Attempt, Completion, build_samples, read_completions, read_spans
from transforms.generation.request import PromptRecord, Request

URL = "http://127.0.0.1:1"
AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
ATTEMPT = Attempt("a1", URL, AT)
REQUEST = Request(
    PromptRecord(GroupId(1, 5), b"{}", AT),
    Prompt.model_validate({"prompt_id": "p", "text": "1", "reward": {"name": "feedback"}}),
    (3, 4),
    2,
    {},
)


def choice(index=0, **changes):
    logprobs = [-0.5, -0.25, -1.0]
    whole = {
        "index": index,
        "token_ids": [7, 8, 2],
        "logprobs": {"content": [{"token_id": t, "logprob": p} for t, p in zip([7, 8, 2], logprobs, strict=True)]},
        "finish_reason": "stop",
        "weight_versions": [{"version": "3", "start": 0, "end": 2}, {"version": "4", "start": 2, "end": 3}],
    }
    return {**whole, **changes}


def answer(*choices):
    return json.dumps({"choices": choices}).encode()


def read(body):
    completions = read_completions(URL, body, 2, 100)
    return build_samples("demo", REQUEST, ATTEMPT, completions, ["a", "b"])


def test_choices_become_rows_that_a_reader_accepts():
    samples = read(answer(choice(1), choice(0)))
    assert [sample.sample_index for sample in samples] == [0, 1]
    first = samples[0]
    assert (first.response_token_ids, first.response_logprobs) == ((7, 8, 2), (-0.5, -0.25, -1.0))
    assert first.weight_version_spans == (Span(3, 0), Span(4, 2))
    assert (first.weight_version_min, first.weight_version_max) == (3, 4)
    assert (first.group, first.attempt_id, first.worker, first.response_text) == ((1, 5), "a1", URL, "a")
    assert list(first.loss_mask) == [True] * 3
    value, headers = encode(samples)
    assert len(decode(value, headers)[0]) == 2


def test_neighbouring_spans_of_one_version_become_one():
    assert read_spans([("3", 0), ("3", 1), ("5", 2), ("4", 3)]) == (Span(3, 0), Span(5, 2), Span(4, 3))


SHORT = {"content": [{"token_id": 7, "logprob": -0.5}]}
SHIFTED = {"content": [{"token_id": t, "logprob": -0.5} for t in (8, 7, 2)]}
MISSING = {"content": [{"token_id": t, "logprob": None} for t in (7, 8, 2)]}
NAN = {"content": [{"token_id": t, "logprob": float("nan")} for t in (7, 8, 2)]}
POSITIVE = {"content": [{"token_id": t, "logprob": 0.5} for t in (7, 8, 2)]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00\xff<html>",
        b"[]",
        b'{"choices": null}',
        answer(choice(0)),
        answer(choice(0), choice(0)),
        answer(choice(0), choice(1), choice(2)),
        answer(choice(0), choice(1, logprobs=None)),
        answer(choice(0), choice(1, logprobs=SHORT)),
        answer(choice(0), choice(1, logprobs=SHIFTED)),
        answer(choice(0), choice(1, logprobs=MISSING)),
        answer(choice(0), choice(1, logprobs=NAN)),
        answer(choice(0), choice(1, logprobs=POSITIVE)),
        answer(choice(0), choice(1, token_ids=[7, 8, 100])),
        answer(choice(0), choice(1, token_ids=[7, 8, -1])),
        answer(choice(0), choice(1, token_ids=[7, 8, 2.5])),
        answer(choice(0), choice(1, token_ids=[], logprobs={"content": []})),
        answer(choice(0), choice(1, weight_versions=None)),
        answer(choice(0), choice(1, weight_versions=[])),
        answer(choice(0), choice(1, weight_versions=[{"version": "0", "start": 0, "end": 3}])),
        answer(choice(0), choice(1, weight_versions=[{"version": "default", "start": 0, "end": 3}])),
        answer(choice(0), choice(1, weight_versions=[{"version": "1", "start": 1, "end": 3}])),
        answer(choice(0), choice(1, weight_versions=[{"version": "1", "start": 0}, {"version": "2", "start": 9}])),
        answer(choice(0), choice(1, finish_reason="abort")),
    ],
)
def test_a_malformed_answer_is_an_engine_error(body):
    with pytest.raises(EngineError):
        read(body)


def test_a_completion_without_versions_is_no_row():
    with pytest.raises(EngineError, match="weight_version_spans"):
        build_samples("demo", REQUEST, ATTEMPT, [Completion((7,), (-0.5,), (), "stop")], ["a"])
