"""Receipts: who may judge what, and until when."""

import hmac

import pytest

from schemas import receipts as module
from schemas.errors import ConfigError
from schemas.identity import RolloutId
from schemas.receipts import Receipts

ROLLOUT = RolloutId("demo", 1048576, 38, 0)
NOW_S = 1_800_000_000.0
RECEIPTS = Receipts(b"0123456789abcdef")
GOOD = RECEIPTS.issue(ROLLOUT, "ann", NOW_S + 60)


def fault_of(receipt, rollout=ROLLOUT, user="ann", now_s=NOW_S):
    return RECEIPTS.find_fault(receipt, rollout, user, now_s)


def test_the_one_who_saw_the_answer_may_judge_it():
    assert fault_of(GOOD) is None
    assert fault_of(GOOD, now_s=NOW_S + 60) is None


def test_it_expires():
    assert fault_of(GOOD, now_s=NOW_S + 61) == "expired_receipt"


def test_a_literal_receipt_stays_valid():
    """Computed with OpenSSL, so that programs in other languages can check theirs:
    printf '["1", "demo/1048576/38/0", "ann", "1800000060"]' | openssl dgst -sha256 -hmac 0123456789abcdef -binary |
    base64 | tr '+/' '-_' | tr -d '='"""
    signature = "2RnVJl7Qx-2X5SmIV-kMHFG8bUDx2DLvD3hLm6sIsgE"
    assert GOOD.split(".") == ["1", "1800000060", signature]


@pytest.mark.parametrize(
    "changes",
    [
        {"user": "bob"},
        {"user": "Ann"},
        {"user": "ann "},
        {"user": ""},
        {"rollout": ROLLOUT._replace(offset=39)},
        {"rollout": ROLLOUT._replace(index=1)},
        {"rollout": ROLLOUT._replace(partition=1048577)},
        {"rollout": ROLLOUT._replace(run="demo2")},
    ],
)
def test_it_is_for_one_user_and_one_answer(changes):
    assert fault_of(GOOD, **changes) == "bad_receipt"


def test_another_key_signs_otherwise():
    forged = Receipts(b"fedcba9876543210").issue(ROLLOUT, "ann", NOW_S + 60)
    assert fault_of(forged) == "bad_receipt"


def test_a_later_expiry_cannot_be_written_into_it():
    form, expiry, signature = GOOD.split(".")
    assert fault_of(f"{form}.{int(expiry) + 1}.{signature}") == "bad_receipt"


@pytest.mark.parametrize(
    "receipt",
    [
        None, "", ".", "..", "...", "1", "1.", "1..", "1.1800000060", "1.1800000060.", "x" * 512, "1.x.y", "1.-1.y",
        GOOD[:-1], GOOD[1:], GOOD + "=", GOOD.upper(), " " + GOOD, GOOD + " ", "2" + GOOD[1:], "\x00", "é.è.ê",
        "1.1800000060.\N{DIGIT ONE}", GOOD.replace("1800000060", "01800000060"), GOOD.replace(".", ",", 1),
        "\udc80.1.2", "1.\ud800.x", "1.1800000060.\udc80", "1.1800000060." + "A" * 43,
    ],
)  # fmt: skip
def test_what_is_not_a_receipt_is_refused_and_breaks_nothing(receipt):
    assert fault_of(receipt) == "bad_receipt"


def test_every_single_changed_character_is_noticed():
    for place in range(len(GOOD)):
        changed = GOOD[:place] + ("A" if GOOD[place] != "A" else "B") + GOOD[place + 1 :]
        assert fault_of(changed) == "bad_receipt"


def test_what_follows_a_receipt_makes_it_another():
    assert fault_of(GOOD + ".more") == "bad_receipt"


def test_signatures_are_compared_in_constant_time(monkeypatch):
    compared, constant_time = [], hmac.compare_digest

    def compare_digest(one, other):
        compared.append((one, other))
        return constant_time(one, other)

    monkeypatch.setattr(module.hmac, "compare_digest", compare_digest)
    fault_of("1.1800000060.wrong")
    assert [one for one, _ in compared] == [b"wrong"]


def test_a_key_comes_from_a_file(tmp_path):
    file = tmp_path / "key"
    file.write_bytes(b"0123456789abcdef\n")
    assert Receipts.load(str(file)).issue(ROLLOUT, "ann", NOW_S + 60) == GOOD


def test_a_key_that_is_missing_or_short_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="openssl rand"):
        Receipts.load(str(tmp_path / "none"))
    (tmp_path / "short").write_bytes(b"  0123456789abcde  \n")
    with pytest.raises(ConfigError, match="15 bytes, expected 16"):
        Receipts.load(str(tmp_path / "short"))
