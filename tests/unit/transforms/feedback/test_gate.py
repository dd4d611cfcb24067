"""The first look at a feedback record: literal records, receipts and floods."""

import json

import pytest

from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.identity import RolloutId
from schemas.joining import FeedbackConfig
from schemas.receipts import Receipts
from transforms.feedback.drift import Drift
from transforms.feedback.gate import Gate, is_held_out, merge
from transforms.feedback.items import Judged, Refused, Settled, Source

KEY = b"0123456789abcdef"
ROLLOUT = RolloutId("demo", 0, 38, 0)


def record(**changes):
    given = {
        "feedback_id": "f-1", "rollout_id": str(ROLLOUT), "kind": "thumb", "value": 1.0, "user": "ann",
        "at": "2026-01-31T12:00:00.000Z",
    }  # fmt: skip
    return json.dumps(given | changes).encode()


def gate(**changes):
    return Gate(RunConfig(name="demo", feedback=FeedbackConfig(**changes)))


def fate(found):
    return found.fate if isinstance(found, Refused) else None


def look(on, value, at_s=100.0, offset=7):
    return on.look(Source((1, offset), offset, at_s), value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff\xfe",
        b"[1]",
        b"x" * (300 << 10),
        record(kind="thumb", value=0.5),
        record(kind="score", value=1.5),
        record(kind="score", value="NaN"),
        record(kind="correction", value=""),
        record(kind="preference", value=str(ROLLOUT)),
        record(kind="preference", value="demo/0/39/0"),
        record(kind="retract", value=1.0),
        record(rollout_id="demo/0/38"),
        record(user=""),
        record(more=1),
    ],
)
def test_what_is_no_judgement_becomes_a_dead_letter_and_a_fate(value):
    found = look(gate(), value)
    assert fate(found) == "malformed"
    assert found.source == Source((1, 7), 7, 100.0)
    letter = found.letter
    assert (letter.stage, letter.topic, letter.partition, letter.offset) == ("join", "demo.feedback", 1, 7)


def test_a_judgement_passes():
    found = look(gate(), record())
    assert isinstance(found, Judged)
    assert (found.group, found.feedback.value) == (ROLLOUT.group, 1.0)


def test_judgements_of_other_runs_are_unknown():
    assert fate(look(gate(), record(rollout_id="other/0/38/0"))) == "unknown"


def test_receipts_are_asked_for_once_there_is_a_key(tmp_path):
    (tmp_path / "key").write_bytes(KEY + b"\n")
    on, receipts = gate(key_file=str(tmp_path / "key")), Receipts(KEY)
    good = receipts.issue(ROLLOUT, "ann", 200)
    assert isinstance(look(on, record(receipt=good)), Judged)
    assert fate(look(on, record())) == "bad_receipt"
    assert fate(look(on, record(receipt=good[:-1] + ("A" if good[-1] != "A" else "B")))) == "bad_receipt"
    assert fate(look(on, record(receipt=good, user="bob"))) == "bad_receipt"
    assert fate(look(on, record(receipt=good, rollout_id="demo/0/38/1"))) == "bad_receipt"
    assert fate(look(on, record(receipt=receipts.issue(ROLLOUT, "ann", 99)))) == "expired_receipt"
    assert fate(look(on, record(receipt=good.replace("200", "900", 1)))) == "bad_receipt"


def test_forged_records_do_not_count_against_the_user_whose_name_they_bear(tmp_path):
    (tmp_path / "key").write_bytes(KEY)
    on = gate(key_file=str(tmp_path / "key"), user_burst=1)
    assert {fate(look(on, record(receipt="1.900.x"))) for _ in range(50)} == {"bad_receipt"}
    assert isinstance(look(on, record(receipt=Receipts(KEY).issue(ROLLOUT, "ann", 200))), Judged)


def test_a_key_that_is_missing_or_short_is_refused_in_words(tmp_path):
    with pytest.raises(ConfigError, match="key_file"):
        gate(key_file=str(tmp_path / "none"))
    (tmp_path / "short").write_text("secret")
    with pytest.raises(ConfigError, match="6 bytes, expected 16"):
        gate(key_file=str(tmp_path / "short"))


def test_a_flood_of_one_user_is_refused_and_others_are_not():
    on = gate(user_rate_per_s=2, user_burst=10)
    found = [look(on, record(), 100 + index / 1000) for index in range(1000)]
    assert sum(isinstance(each, Judged) for each in found) == 10 + 1  # the burst, and what a second gives back before
    assert isinstance(look(on, record(user="bob"), 101.0), Judged)
    assert isinstance(look(on, record(), 102.0), Judged)


def test_held_out_users_are_a_share_and_always_the_same():
    held = [is_held_out(f"user-{number}", 0.1) for number in range(10_000)]
    assert sum(held) == pytest.approx(1000, abs=100)
    assert not any(is_held_out(f"user-{number}", 0.0) for number in range(100))
    assert all(is_held_out(f"user-{number}", 1.0) for number in range(100))
    on = gate(held_out_share=1.0)
    assert fate(look(on, record())) == "held_out"


def test_the_alarm_goes_on_and_off_with_the_difference_of_full_windows():
    drift = Drift(3, 0.5)
    for rating in (1.0, 1.0, 1.0, 1.0):
        drift.hear(rating, held_out=False)
    for rating in (1.0, -1.0):
        drift.hear(rating, held_out=True)
    assert (drift.difference(), drift.is_raised) == (None, False)
    drift.hear(0.0, held_out=True)
    assert (drift.difference(), drift.is_raised) == (1.0, True)
    for _ in range(3):
        drift.hear(1.0, held_out=True)
    assert (drift.difference(), drift.is_raised) == (0.0, False)


def test_many_refusals_are_one_thing_to_write():
    on = gate(user_burst=1, user_rate_per_s=0.001)
    found = [look(on, record(), 100.0, offset) for offset in range(5)]
    merged = merge([*found[1:], Settled(judged=(Source((1, 9), 9, 1.0),), passed=(Source((0, 3), 3, 1.0),))])
    assert [each.fate for each in merged.refused] == ["rate_limited"] * 4
    assert [each.source.place for each in merged.refused] == [(1, offset) for offset in range(1, 5)]
    assert ([each.place for each in merged.judged], [each.place for each in merged.passed]) == ([(1, 9)], [(0, 3)])
    assert merge([]) is None


def test_what_was_let_through_before_a_restart_counts_for_the_rate_still():
    on = gate(user_burst=2, user_rate_per_s=0.001)
    on.remember(Source((1, 1), 1, 100.0), record())
    on.remember(Source((1, 2), 2, 100.0), b"not a record")
    found = [look(on, record(), 100.0, offset) for offset in (3, 4)]
    assert [isinstance(each, Judged) for each in found] == [True, False]
