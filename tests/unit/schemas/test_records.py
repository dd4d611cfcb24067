"""JSON records: the exact forms of DESIGN.md are read, rubbish is refused with a reason."""

import json

import pytest

from schemas.admission import AdmissionFrontier
from schemas.dead_letters import DeadLetter
from schemas.errors import RecordError
from schemas.evals import EvalResult
from schemas.feedback import Feedback
from schemas.identity import GroupId, RolloutId
from schemas.ledger import StartEntry, StepEntry, decode_entry, surviving_steps
from schemas.limits import MAX_PROMPT_BYTES
from schemas.prompts import Prompt
from schemas.weights import WeightVersion, version_path

PROMPT = {"messages": [{"role": "user", "content": "hi"}], "reward": {"name": "exact_match", "args": {"answer": "x"}}}


def prompt(**changes):
    return json.dumps({**PROMPT, **changes}).encode()


def test_prompt_needs_only_messages_and_reward():
    read = Prompt.decode(prompt())
    assert read.group_size is None
    assert read.messages[0].content == "hi"


@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize(
    ("value", "reason", "words"),
    [
        (b"{no json", "not_json", "Expecting property name"),
        (b"\xff\xfe", "not_json", "the value starts with"),
        (b"[" * 100_000, "not_json", "recursion"),
        (None, "bad_record", "null"),
        (b"[1]", "bad_record", "given [1]"),
        (prompt(reward=None), "bad_record", "reward"),
        (prompt(group_size=10**9), "bad_record", "less than or equal to 1024, given 1000000000"),
        (prompt(group_size=0), "bad_record", "group_size"),
        (prompt(text="also"), "bad_record", "exactly one of"),
        (prompt(messages=None), "bad_record", "exactly one of"),
        (prompt(messages=None, token_ids=[1, -1]), "bad_record", "token_ids.1"),
        (prompt(rewrd={}), "bad_record", "rewrd"),
        (prompt(schema=2), "bad_record", "schema"),
        (prompt(sampling={"temperature": 0}), "bad_record", "temperature"),
        (prompt(messages=None, text="x" * MAX_PROMPT_BYTES), "too_large", "expected at most"),
    ],
)
def test_a_bad_prompt_is_refused_with_a_reason_and_what_was_given(value, reason, words):
    with pytest.raises(RecordError) as caught:
        Prompt.decode(value)
    assert caught.value.reason == reason
    assert words in caught.value.detail


def test_a_newer_writer_may_add_keys_to_our_own_records():
    value = b'{"schema":1,"version":3,"generation":1,"frontier":{"0":4},"new":true}'
    assert AdmissionFrontier.decode(value).admits(0, 3)
    assert not AdmissionFrontier.decode(value).admits(0, 4)
    assert not AdmissionFrontier.decode(value).admits(1, 0)


def test_timestamps_are_written_in_utc_with_milliseconds():
    value = {
        "version": 1, "step": 0, "generation": 1, "manifest_sha256": "a" * 64, "dtype": "float32", "base_model": "m",
        "published_at": "2026-01-31T13:00:00.0004+01:00",
    }  # fmt: skip
    record = WeightVersion.decode(json.dumps(value).encode())
    assert json.loads(record.encode())["published_at"] == "2026-01-31T12:00:00.000Z"


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-31T12:00:00"])
def test_a_time_that_has_no_utc_is_refused(at):
    value = {"version": 1, "task": "sums", "metric": "accuracy", "value": 0.5, "samples": 1, "temperature": 0, "at": at}
    with pytest.raises(RecordError, match="bad_record: at:"):
        EvalResult.decode(json.dumps(value).encode())


@pytest.mark.parametrize("decoder", [decode_entry, Prompt.decode, WeightVersion.decode])
@pytest.mark.parametrize("value", [b'{"kind": "%s"}', b'{"%s": 1}', b'{"version": "%s", "kind": "step"}'])
def test_a_refusal_does_not_quote_all_that_was_given(decoder, value):
    with pytest.raises(RecordError) as caught:
        decoder(value.replace(b"%s", b"x" * 100_000))
    assert len(caught.value.detail) < 600


def test_no_path_can_travel_in_an_announcement():
    assert "path" not in WeightVersion.model_fields
    assert version_path("/store/", 12) == "/store/00000012"


def test_rollout_ids_round_trip_and_refuse_other_forms():
    assert RolloutId.parse("demo/0/38/3") == RolloutId("demo", 0, 38, 3)
    assert str(RolloutId.parse("demo/0/38/3")) == "demo/0/38/3"
    for text in ("demo/0/38", "demo/0/38/3/4", "demo/a/38/3", "../0/0/0/0", "", "demo/0/038/3", "demo/٣/38/3",
                 "demo/0/38/3\n", f"demo/0/{'9' * 20}/3"):  # fmt: skip
        with pytest.raises(ValueError, match="expected RUN/PARTITION/OFFSET/SAMPLE"):
            RolloutId.parse(text)
    with pytest.raises(RecordError, match="rollout_id"):
        Feedback.decode(b'{"feedback_id":"f","rollout_id":"x","kind":"thumb","value":1,"user":"u"}')


def test_a_dead_letter_keeps_the_head_and_the_hash_of_what_it_is_about():
    letter = DeadLetter.of("generate", "not_json", "d" * 5000, ("demo.prompts", 1, 9), b"x" * 10_000)
    read = DeadLetter.decode(letter.encode())
    assert read.group == GroupId(1, 9)
    assert len(read.detail) == 1000
    assert len(read.head_base64) == 4 * ((4096 + 2) // 3)
    assert read.key() == b"demo.prompts/1/9"


def step(generation, number):
    return StepEntry(generation=generation, step=number, version=number + 1, trained=(), dropped=())


def start(generation, continues=None):
    return StartEntry(generation=generation, continues=continues)


def test_the_surviving_line_leaves_out_what_a_newer_generation_did_not_continue():
    entries = [
        start(1), step(1, 1), step(1, 2), step(1, 3),
        start(2, {"generation": 1, "step": 1}), step(2, 2), step(2, 3),
        start(3, {"generation": 2, "step": 2}), step(3, 3),
    ]  # fmt: skip
    assert [(entry.generation, entry.step) for entry in surviving_steps(entries)] == [(1, 1), (2, 2), (3, 3)]


def test_ledger_entries_are_told_apart_by_kind():
    assert isinstance(decode_entry(start(1).encode()), StartEntry)
    assert isinstance(decode_entry(step(1, 1).encode()), StepEntry)
    with pytest.raises(RecordError):
        decode_entry(b'{"kind": "other"}')
