"""Which of several announcements counts; the topic is a list here, ``tests/integration`` has a real one."""

from types import SimpleNamespace

import pytest
from kafka.errors import OffsetOutOfRangeError

from schemas.config import RunConfig
from schemas.errors import StateError
from schemas.weights import WeightVersion
from transforms.generation.worker.announcements import Announcements


def announcement(version, generation=1):
    return WeightVersion(
        version=version, step=version, generation=generation, manifest_sha256="0" * 64, dtype="float32", base_model="m"
    )


class Topic:
    """A consumer whose polls are given."""

    def __init__(self, *polls):
        self.polls = list(polls)

    def partitions_for_topic(self, topic):
        return {0}

    def assign(self, partitions):
        self.partitions = partitions

    def beginning_offsets(self, partitions):
        return dict.fromkeys(partitions, 0)

    def seek(self, partition, offset):
        pass

    def poll(self, timeout_ms):
        values = self.polls.pop(0) if self.polls else []
        if isinstance(values, Exception):
            raise values
        return {self.partitions[0]: [SimpleNamespace(value=value, offset=0) for value in values]} if values else {}


@pytest.fixture
def read(monkeypatch):
    def newest(*polls):
        """The newest announcement of some polls, and the reasons of what was passed over."""
        monkeypatch.setattr("transforms.generation.worker.announcements._connect", lambda config: Topic(*polls))
        source, reasons = Announcements(RunConfig(name="t")), []
        source.on_bad_record = reasons.append
        return source.newest(0), reasons

    return newest


def values(*announced):
    return [one.encode() for one in announced]


def test_the_last_of_several_polls_counts(read):
    newest, reasons = read(values(announcement(1), announcement(2)), values(announcement(3)))
    assert (newest.version, reasons) == (3, [])


def test_nothing_is_none(read):
    assert read() == (None, [])


@pytest.mark.parametrize("late", [announcement(4, generation=1), announcement(1, generation=2), announcement(3, 2)])
def test_what_a_replaced_learner_announces_late_does_not_hide_the_newest(read, late):
    newest, reasons = read(values(announcement(2), announcement(3, generation=2), late))
    assert (newest.version, newest.generation) == (3, 2)
    assert reasons == ["old"]


@pytest.mark.parametrize(
    "value", [None, b"", b"{}", b"\xff", announcement(9).encode().replace(b":9,", b":" + b"9" * 300 + b",", 1)]
)
def test_what_is_no_announcement_is_passed_over_and_counted(read, value):
    newest, reasons = read([*values(announcement(2)), value])
    assert newest.version == 2
    assert reasons == ["bad_record"]


def test_a_path_in_an_announcement_changes_nothing(read):
    value = announcement(2).encode()[:-1] + b', "path": "/etc", "root": "file:///etc"}'
    newest, reasons = read([value])
    assert (newest.version, reasons) == (2, [])
    assert not hasattr(newest, "path")


def test_a_topic_that_lost_records_is_an_error(read):
    with pytest.raises(StateError, match="cut or created anew"):
        read(OffsetOutOfRangeError({}))
