"""Token buckets on a clock of the test's own."""

from transforms.buckets import Buckets


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def test_a_burst_is_allowed_and_then_the_rate():
    clock = Clock()
    buckets = Buckets(2.0, 3, clock=clock)
    assert [buckets.take("ann") for _ in range(4)] == [0, 0, 0, 0.5]
    clock.now_s = 0.5
    assert buckets.take("ann") == 0
    assert buckets.take("ann") == 0.5


def test_a_bucket_holds_no_more_than_its_burst():
    clock = Clock()
    buckets = Buckets(2.0, 3, clock=clock)
    buckets.take("ann")
    clock.now_s = 1000.0
    assert [buckets.take("ann") == 0 for _ in range(4)] == [True, True, True, False]


def test_what_is_refused_costs_nothing():
    clock = Clock()
    buckets = Buckets(1.0, 1, clock=clock)
    buckets.take("ann")
    for _ in range(100):
        assert buckets.take("ann") > 0
    clock.now_s = 1.0
    assert buckets.take("ann") == 0


def test_users_do_not_share_a_bucket():
    buckets = Buckets(1.0, 1, clock=Clock())
    assert buckets.take("ann") == 0
    assert buckets.take("bob") == 0
    assert buckets.take("ann") == 1.0


def test_memory_is_bounded_and_those_who_ask_most_are_remembered():
    buckets = Buckets(1.0, 1, most=100, clock=Clock())
    for stranger in range(10_000):
        buckets.take("ann")
        buckets.take(stranger)
    assert len(buckets) == 100
    assert buckets.take("ann") > 0


def test_another_clock_may_go_back():
    buckets = Buckets(1.0, 1)
    assert [buckets.take("ann", moment_s) for moment_s in (10.0, 5.0, 10.5)] == [0, 1.0, 0.5]
    assert buckets.take("ann", 11.0) == 0
