"""Records of several partitions in one order, however they are read."""

import random
from types import SimpleNamespace

from kafka import TopicPartition

from transforms.feedback import order as module
from transforms.feedback.order import Order

FIRST, SECOND = TopicPartition("demo.feedback", 0), TopicPartition("demo.pending", 0)


def records(*moments_ms):
    return [
        SimpleNamespace(timestamp=moment_ms, offset=offset, value=b"1234")
        for offset, moment_ms in enumerate(moments_ms)
    ]


def moments(placed):
    return [record.timestamp for _, record in placed]


def test_nothing_is_given_before_every_partition_is_known_to_have_nothing_earlier():
    order = Order([FIRST, SECOND])
    order.put(FIRST, records(10, 20, 30))
    assert (order.take(9), order.given_ms, order.waits_for_ms) == ([], -1, 10)
    order.put(SECOND, records(15, 25))
    assert (moments(order.take(9)), order.given_ms) == ([10, 15, 20], 24)
    order.know(SECOND, 100)
    assert (moments(order.take(9)), order.given_ms) == ([25], 29)
    order.know(FIRST, 90)
    assert (moments(order.take(9)), order.given_ms, order.waits_for_ms) == ([30], 90, float("inf"))


def test_of_one_moment_the_order_is_that_of_partitions_and_offsets():
    order = Order([SECOND, FIRST])
    order.put(SECOND, records(10, 10))
    order.put(FIRST, records(10, 10))
    for partition in (FIRST, SECOND):
        order.know(partition, 10)
    assert [(partition, record.offset) for partition, record in order.take(9)] == [
        (FIRST, 0), (FIRST, 1), (SECOND, 0), (SECOND, 1),
    ]  # fmt: skip


def test_what_is_left_over_holds_the_clock_back():
    order = Order([FIRST])
    order.put(FIRST, records(10, 20, 20, 30))
    order.know(FIRST, 1000)
    assert order.is_ready
    assert (moments(order.take(2)), order.given_ms) == ([10, 20], 19)
    assert (moments(order.take(2)), order.given_ms) == ([20, 30], 1000)
    assert not order.is_ready


def test_a_clock_that_went_back_keeps_the_order_of_the_partition():
    order = Order([FIRST])
    order.put(FIRST, records(10, 30, 20))
    order.put(FIRST, records(25, 40))
    order.know(FIRST, 50)
    assert moments(order.take(9)) == [10, 30, 20, 25, 40]


def test_a_partition_that_is_far_ahead_has_to_wait(monkeypatch):
    monkeypatch.setattr(module, "_MOST_HELD_BYTES", 2 * (1024 + 4))
    order = Order([FIRST, SECOND])
    order.put(FIRST, records(10, 20))
    assert order.ahead() == {FIRST}
    order.put(SECOND, records(20))
    order.take(9)
    assert order.ahead() == set()


def test_a_partition_that_all_wait_for_is_read_however_much_it_holds(monkeypatch):
    monkeypatch.setattr(module, "_MOST_HELD_BYTES", 2 * (1024 + 4))
    order = Order([FIRST, SECOND])
    for partition in (FIRST, SECOND):
        order.know(partition, 1000)  # by our clock, behind which the broker's is
    order.put(FIRST, records(900, 910, 920))
    order.put(SECOND, records(1200, 1300, 1400))
    assert (order.is_ready, order.ahead()) == (False, {SECOND}), "else nothing would be known any more"
    order.put(FIRST, records(1250))
    assert moments(order.take(9)) == [900, 910, 920, 1200]


def test_a_clock_that_is_far_ahead_is_not_waited_for():
    order = Order([FIRST, SECOND])
    order.put(FIRST, records(10, 10**9, 20), latest_ms=60)
    order.know(SECOND, 60)
    order.know(FIRST, 60)
    assert moments(order.take(9)) == [10, 10**9, 20]


def test_however_the_log_is_cut_into_polls_the_order_is_the_same():
    dice, told = random.Random(0), set()
    logs = {each: records(*sorted(dice.choices(range(200), k=100))) for each in (FIRST, SECOND)}
    for _ in range(20):
        order, left, found = Order(logs), {each: list(log) for each, log in logs.items()}, []
        while any(left.values()):
            partition, most = dice.choice(list(logs)), dice.randrange(1, 30)
            order.put(partition, left[partition][:most])
            del left[partition][:most]
            found += order.take(dice.randrange(1, 50))
        for partition in logs:
            order.know(partition, 1000)
        found += order.take(1000)
        told.add(tuple((partition, record.offset) for partition, record in found))
    assert len(told) == 1
    assert len(told.pop()) == 200
