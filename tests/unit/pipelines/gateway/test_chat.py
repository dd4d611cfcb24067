"""The forms of OpenAI's route, and bodies that are none."""

import json
from contextlib import suppress

import pytest
from fastapi import HTTPException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.gateway.chat import ChatRequest, Teller, headers_of, versions_of
from pipelines.gateway.judging import read_fields, user_in
from schemas.errors import RecordError
from schemas.identity import RolloutId
from schemas.prompts import Sampling
from schemas.trajectories import Span
from tests.support.samples import group

HELLO = {"messages": [{"role": "user", "content": "Hi"}]}
ROLLOUT = RolloutId("demo", 1048576, 17, 0)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*ChatRequest.model_fields, "tools", "logit_bias"])


SLOW_MACHINE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(**more):
    return ChatRequest.read(json.dumps({**HELLO, **more}).encode())


def test_what_is_not_said_is_the_runs():
    assert read().to_exchange("ann").sampling is None
    assert read(stop=[], frequency_penalty=0, n=1).to_exchange("ann").sampling is None


def test_sampling_is_recorded_as_it_was_asked_for():
    given_sampling = {"temperature": 0.5, "top_p": 0.5, "max_completion_tokens": 7, "stop": "END", "seed": 3}
    expected = Sampling(temperature=0.5, top_p=0.5, max_tokens=7, stop=("END",), seed=3)
    assert read(**given_sampling).to_exchange("ann").sampling == expected


def test_text_in_parts_is_text():
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "2+3?"}]
    exchange = read(messages=[{"role": "user", "content": parts, "name": "ann"}]).to_exchange("ann")
    assert exchange.messages[0].content == "What is 2+3?"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"temperature": 0}, "cannot be trained"),
        ({"tools": []}, "'tools' is not taken here"),
        ({"n": 2}, "n: "),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"seed": -1}, "seed"),
        ({"user": ""}, "user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "", "content": ""}]}, "role"),
    ],
)
def test_what_cannot_be_answered_so_is_refused(more, reason):
    with pytest.raises(RecordError, match=reason) as refused:
        read(**more)
    assert refused.value.reason == "bad_request"


@SLOW_MACHINE
@given(st.dictionaries(FIELDS, JSON, max_size=4))
def test_no_body_breaks_the_reader(fields):
    body = json.dumps({**HELLO, **fields}).encode()
    with suppress(RecordError):
        ChatRequest.read(body).to_exchange("ann").encode()


@SLOW_MACHINE
@given(st.binary())
def test_no_bytes_break_the_readers(body):
    with suppress(RecordError):
        ChatRequest.read(body)
    with suppress(HTTPException):
        user_in(read_fields(body, "application/json"))


@SLOW_MACHINE
@given(st.binary(max_size=200))
def test_no_form_breaks_the_reader(body):
    with suppress(HTTPException):
        user_in(read_fields(body, "application/x-www-form-urlencoded; charset=utf-8"))


def test_an_answer_is_told_in_openais_words():
    (sample,) = group(size=1)
    teller = Teller("tiny", ROLLOUT, "r")
    whole = teller.whole(sample, "5")
    assert (whole["id"], whole["object"], whole["model"]) == ("demo/1048576/17/0", "chat.completion", "tiny")
    assert whole["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    facts = {"rollout": "demo/1048576/17/0", "receipt": "r", "versions": [11, 12], "written": True}
    assert whole["asyncflow"] == teller.last(sample)["asyncflow"] == facts
    assert "written" not in teller.first()["asyncflow"]
    headers = headers_of(ROLLOUT, None, versions_of(sample))
    assert headers == {"X-AsyncFlow-Rollout": "demo/1048576/17/0", "X-AsyncFlow-Versions": "11,12"}


def test_versions_are_told_once_in_their_order():
    (sample,) = group(size=1, weight_version_spans=(Span(3, 0), Span(4, 1), Span(3, 2)))
    assert versions_of(sample) == [3, 4]
