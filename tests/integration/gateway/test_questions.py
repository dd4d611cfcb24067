"""The gateway on a real broker, before a simulated engine: questions, rows, faults."""

import json
import threading
import time

import httpx
import pytest

from schemas.exchanges import Exchange
from schemas.identity import EXCHANGES, RolloutId
from schemas.trajectories import Span
from tests.support.gateway import Gateway, events_of, rows_of, text_of, tokens_of
from tests.support.simulated_engine import SimulatedEngine
from tests.support.trajectories import read_all, wait_until


def test_an_answer_is_recorded_as_the_engine_gave_it(gateway, engine):
    engine.answers.append(tokens_of("it is 5"))
    answer = gateway.ask("What is 2+3?", user="ann", task="sums", metadata={"page": 7})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == "it is 5"
    assert body["choices"][0]["finish_reason"] == "stop"
    rollout = RolloutId.parse(answer.headers["X-AsyncFlow-Rollout"])
    assert (body["id"], body["asyncflow"]["versions"]) == (str(rollout), [3])
    assert answer.headers["X-AsyncFlow-Versions"] == "3"

    (record,) = read_all(gateway.config, gateway.config.topics.exchanges)
    assert (EXCHANGES + record.partition, record.offset, 0) == rollout[1:]
    exchange = Exchange.decode(record.value)
    assert (exchange.user, exchange.task, exchange.metadata) == ("ann", "sums", {"page": 7})
    assert exchange.messages[0].content == "What is 2+3?"

    (row,) = rows_of(gateway.config)
    assert row.rollout_id == rollout
    assert row.purpose == "feedback"
    assert row.task == "sums"
    assert row.reward is None
    assert list(row.response_token_ids) == tokens_of("it is 5")
    assert list(row.prompt_token_ids) == engine.requests[0].body["token_ids"]
    assert all(-1 <= logprob < 0 for logprob in row.response_logprobs)
    assert row.weight_version_spans == (Span(3, 0),)
    assert row.response_text == "it is 5"
    assert body["usage"]["completion_tokens"] == len(row.response_token_ids)


def test_an_answer_is_streamed_and_its_end_comes_after_its_row(gateway, engine):
    engine.token_s = 0.01
    engine.answers.append(tokens_of("one two three"))
    with gateway.stream("Count.") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        rollout = response.headers["X-AsyncFlow-Rollout"]
        events = []
        for event in events_of(response):
            events.append(event)
            if event and "written" in event.get("asyncflow", {}):
                assert [str(row.rollout_id) for row in rows_of(gateway.config)] == [rollout]
    assert events[-1] is None
    assert text_of(events) == "one two three"
    assert len([event for event in events if event and event["choices"][0]["delta"].get("content")]) > 5
    assert events[-2]["asyncflow"] == {"rollout": rollout, "receipt": None, "versions": [3], "written": True}


def test_versions_that_change_in_the_middle_are_told_and_recorded(gateway, engine):
    engine.token_s = 0.02
    engine.answers.append(tokens_of("a" * 30))
    with gateway.stream("Say a.") as response:
        seen = 0
        for event in events_of(response):
            seen += bool(event and event["choices"] and event["choices"][0]["delta"].get("content"))
            if seen == 10:
                engine.version = 4
            if event and "versions" in event.get("asyncflow", {}):
                assert event["asyncflow"]["versions"] == [3, 4]
    (row,) = rows_of(gateway.config)
    assert [span.version for span in row.weight_version_spans] == [3, 4]
    assert (row.weight_version_min, row.weight_version_max) == (3, 4)


def test_sampling_is_the_runs_unless_the_client_says_otherwise(gateway, engine):
    gateway.ask("a")
    gateway.ask("b", temperature=0.5, top_p=0.9, max_tokens=3, stop=["x"], seed=7)
    first, second = [asked.body for asked in engine.requests]
    assert first["sampling_params"]["temperature"] == 1.0
    assert first["sampling_params"]["max_tokens"] == 64
    assert first["sampling_params"]["logprobs"] == 0
    assert first["priority"] == -1
    wanted = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 3, "stop": ["x"], "seed": 7, "detokenize": True}
    assert wanted.items() <= second["sampling_params"].items()


@pytest.mark.parametrize("fault", ["break_off", "error_event", "no_end"])
def test_an_answer_that_breaks_off_is_shown_so_and_leaves_no_row(gateway, engine, fault):
    engine.faults.append(fault)
    engine.answers.append(tokens_of("0123456789"))
    with gateway.stream("Count.") as response:
        events = list(events_of(response))
    assert text_of(events) == "012345"
    assert "broke off" in events[-1]["error"]["message"]
    assert rows_of(gateway.config) == []
    assert gateway.ask("Again.").status_code == 200
    assert len(rows_of(gateway.config)) == 1


@pytest.mark.parametrize("fault", ["no_versions", "version_zero", "nan", "short", "garbage"])
def test_an_answer_that_is_not_one_is_asked_for_again(gateway, engine, fault):
    engine.faults.append(fault)
    assert gateway.ask("Count.").status_code == 200
    assert len(engine.requests) == 2
    assert len(rows_of(gateway.config)) == 1


def test_another_worker_answers_for_one_that_is_gone(make_config, engine):
    with SimulatedEngine(seed=2, version=3) as other, Gateway(make_config(engine, other)) as gateway:
        engine.always = dict.fromkeys(range(80), "unavailable")
        assert {gateway.ask(f"Question {number}").status_code for number in range(5)} == {200}
        assert {row.worker for row in rows_of(gateway.config)} == {other.url}


def test_a_refusal_of_the_engine_is_the_clients_fault(gateway, engine):
    engine.faults.append("refuse")
    answer = gateway.ask("Count.")
    assert answer.status_code == 400
    assert "max_tokens is too large" in answer.json()["error"]["message"]


def test_a_reader_who_leaves_stops_the_engine_and_there_is_no_row(gateway, engine):
    engine.token_s = 0.05
    engine.answers.extend([tokens_of("a" * 60), tokens_of("b" * 60)])
    with gateway.stream("Long.") as response:
        next(response.iter_lines())
    wait_until(lambda: engine.aborted == 1, 10)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway.url}/v1/chat/completions", json=_body("Long."), timeout=0.6)
    wait_until(lambda: engine.aborted == 2, 10)
    assert rows_of(gateway.config) == []
    assert len(read_all(gateway.config, gateway.config.topics.exchanges)) == 2


def test_no_more_answers_are_generated_at_once_than_may_be(make_config, engine):
    engine.token_s = 0.05
    engine.answers.extend(tokens_of("a" * 20) for _ in range(20))
    statuses = []
    with Gateway(make_config(max_in_flight=3)) as gateway:

        def ask():
            statuses.append(httpx.post(f"{gateway.url}/v1/chat/completions", json=_body("Hi"), timeout=30))

        threads = [threading.Thread(target=ask) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert engine.most_at_once <= 3
    assert {answer.status_code for answer in statuses} == {200, 503}
    assert sum(answer.status_code == 200 for answer in statuses) >= 3


def _body(text, **more):
    return {"messages": [{"role": "user", "content": text}], **more}


REFUSED = {
    b"\xff\xfe{": "Invalid JSON",
    b'{"messages": [{"role": "user", "content": "\xff"}]}': "Invalid JSON",
    b"[" * 60_000: "Invalid JSON",
    b'{"messages": [{"role": "user", "content": "\\ud800"}]}': "",
    b'{"messages": []}': "messages",
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": 0}': "cannot be trained",
    b'{"messages": [{"role": "user", "content": "hi"}], "temperature": NaN}': "temperature",
    b'{"messages": [{"role": "user", "content": "hi"}], "n": 2}': "n:",
    b'{"messages": [{"role": "user", "content": "hi"}], "tools": []}': "'tools' is not taken here",
    b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}': "content",
    json.dumps(_body("a" * 300)).encode(): "tokens",
}


def test_what_cannot_be_asked_is_refused_with_a_sentence_and_recorded_nowhere(gateway):
    for body, reason in REFUSED.items():
        answer = gateway.http.post("/v1/chat/completions", content=body)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]["message"]
    assert read_all(gateway.config, gateway.config.topics.exchanges) == []


def test_a_body_of_ten_megabytes_is_not_read(gateway):
    body = b'{"messages": [{"role": "user", "content": "' + b"a" * 10_000_000
    assert gateway.http.post("/v1/chat/completions", content=body).status_code == 413
    pieces = (b"a" * 100_000 for _ in range(100))
    assert gateway.http.post("/v1/chat/completions", content=pieces).status_code == 413
    assert gateway.http.post("/feedback", content=body).status_code == 413


def test_models_are_those_of_the_run(gateway):
    (card,) = gateway.http.get("/v1/models").json()["data"]
    assert gateway.ask("Hi", model=card["id"]).status_code == 200
    assert gateway.ask("Hi", model="gpt-5").status_code == 404


def test_openais_own_client_takes_it_for_openai(gateway, engine):
    from openai import APIError, BadRequestError, OpenAI

    client = OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)
    (model,) = client.models.list()
    engine.answers.extend([tokens_of("five"), tokens_of("six"), tokens_of("0123456789")])
    messages = [{"role": "user", "content": "What is 2+3?"}]
    raw = client.chat.completions.with_raw_response.create(model=model.id, messages=messages, user="ann")
    completion = raw.parse()
    assert completion.choices[0].message.content == "five"
    assert completion.id == raw.headers["X-AsyncFlow-Rollout"]

    asked = {"model": model.id, "messages": messages, "stream": True}
    stream = list(client.chat.completions.create(**asked, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices) == "six"
    assert stream[-1].usage.completion_tokens == 4
    assert stream[-2].model_extra["asyncflow"]["written"]

    with pytest.raises(BadRequestError, match="cannot be trained"):
        client.chat.completions.create(model=model.id, messages=messages, temperature=0)
    engine.faults.append("break_off")
    with pytest.raises(APIError, match="broke off"):
        list(client.chat.completions.create(**asked))


def test_stop_texts_are_not_shown(gateway, engine):
    engine.answers.append(tokens_of("one, two, three"))
    assert gateway.ask("Count.", stop=", th").json()["choices"][0]["message"]["content"] == "one, two"
    assert rows_of(gateway.config)[0].response_text == "one, two, three"  # the engine would have stopped


@pytest.mark.timed
def test_without_a_worker_nothing_is_recorded(make_config, engine):
    with Gateway(make_config()) as gateway:
        engine.die()
        wait_until(lambda: not gateway.parts.desk._workers.some_up, 15)
        started = time.monotonic()
        answer = gateway.ask("Hi")
        assert answer.status_code == 503
        assert "no worker is up" in answer.json()["error"]["message"]
        assert time.monotonic() - started < 5
        assert read_all(gateway.config, gateway.config.topics.exchanges) == []
