"""What the ledger says to a learner that starts."""

from schemas.identity import GroupId
from schemas.ledger import DroppedGroup, Position, StartEntry, StepEntry, TrainedGroup
from trainers.restart import History


def start(generation, of=None, step=0, gives_up=()):
    return StartEntry(generation=generation, continues=of and Position(generation=of, step=step), gives_up=gives_up)


def step(generation, number, *, trained=True):
    group = TrainedGroup(group=GroupId(0, number), at=(0, number), attempt="a", samples=2, versions=(1, 1))
    return StepEntry(generation=generation, step=number, version=number, trained=(group,) * trained, dropped=())


def steps(generation, first, last):
    return [step(generation, number) for number in range(first, last + 1)]


def redo(history, after):
    return [(entry.generation, entry.step) for entry in history.steps_after(after)]


def test_empty_ledger_is_the_first_start():
    history = History([])
    assert (history.generation, history.steps_after(0), history.skipped_steps(9)) == (0, [], [])


def test_later_steps_of_the_line_are_done_again():
    history = History([start(1), *steps(1, 1, 7)])
    assert redo(history, 5) == [(1, 6), (1, 7)]


def test_redo_that_was_cut_off_goes_on_with_the_first_lines_plans():
    history = History([start(1), *steps(1, 1, 8), start(2, 1, 5), step(2, 6)])
    assert redo(history, 5) == [(2, 6), (1, 7), (1, 8)]
    assert redo(history, 6) == [(1, 7), (1, 8)]


def test_redo_that_was_cut_off_twice():
    history = History([start(1), *steps(1, 1, 8), start(2, 1, 5), step(2, 6), start(3, 1, 5)])
    assert redo(history, 5) == [(2, 6), (1, 7), (1, 8)]


def test_new_steps_replace_what_lay_ahead():
    history = History([start(1), *steps(1, 1, 6), start(2, 1, 5), *steps(2, 6, 9)])
    assert redo(history, 5) == [(2, 6), (2, 7), (2, 8), (2, 9)]


def test_checkpoint_counts_only_on_the_surviving_line():
    history = History([start(1), *steps(1, 1, 20), start(2, 1, 10), *steps(2, 11, 12)])
    assert history.is_on_line(Position(generation=1, step=10))
    assert not history.is_on_line(Position(generation=1, step=20))
    assert history.is_on_line(Position(generation=2, step=12))
    assert not history.is_on_line(Position(generation=3, step=12))


def test_fresh_restart_takes_all_checkpoints_off_the_line():
    history = History([start(1), *steps(1, 1, 5), start(2)])
    assert not history.is_on_line(Position(generation=1, step=5))


def test_skipped_steps_are_those_that_trained_nothing():
    history = History([start(1), step(1, 1), step(1, 2, trained=False), step(1, 3), step(1, 4, trained=False)])
    assert history.skipped_steps(3) == [2]


def skip(generation, number, reason="nonfinite"):
    dropped = DroppedGroup(group=GroupId(0, number), at=(0, number), reason=reason)
    return StepEntry(generation=generation, step=number, version=1, trained=(), dropped=(dropped,))


def test_skips_are_those_at_the_end_whatever_taught_nothing_between():
    history = History([start(1), skip(1, 1), *steps(1, 2, 5), skip(1, 6), skip(1, 7, "zero_variance"), skip(1, 8)])
    assert [entry.step for entry in history.skips()] == [6, 8]
    assert history.last_trained() == 5
    assert History([*history.entries, start(2, 1, 4)]).skips() == history.skips(), "until a step says otherwise"
    assert History([*history.entries, step(1, 9)]).skips() == []
    assert (History([]).skips(), History([]).last_trained()) == ([], 0)


def test_steps_that_were_given_up_are_not_done_again():
    before = [start(1), *steps(1, 1, 5), skip(1, 6), skip(1, 7), start(2, 1, 3, gives_up=(4, 5, 6, 7))]
    assert redo(History(before), 3) == [(1, 4), (1, 5), (1, 6), (1, 7)], "no step has dropped their groups"
    history = History([*before, step(2, 4)])
    assert redo(history, 3) == [(2, 4)]
    assert history.skips() == []
    assert redo(History([*history.entries, start(3, 2, 3)]), 3) == [(2, 4)]
