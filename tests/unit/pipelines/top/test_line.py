"""The surviving line of a ledger that grows."""

from pipelines.top.line import Line
from schemas.ledger import CheckpointEntry, DroppedGroup, Position, Settings, StartEntry, StepEntry, TrainedGroup
from schemas.weights import WeightVersion


def trained(offset, version):
    return TrainedGroup(group=(0, offset), at=(0, offset), attempt="a", samples=4, versions=(version, version))


def step(number, *groups, drops=(), generation=1, reward=0.5):
    return StepEntry(generation=generation, step=number, version=number + 1, trained=groups, dropped=drops,
                     metrics={"reward_mean": reward})  # fmt: skip


def announced(version, of_step, generation=1):
    return WeightVersion(version=version, step=of_step, generation=generation, manifest_sha256="a" * 64,
                         dtype="float32", base_model="m")  # fmt: skip


def line_of(*entries):
    line = Line()
    for entry in entries:
        line.announce(entry) if isinstance(entry, WeightVersion) else line.add(entry)
    return line


DROP = DroppedGroup(group=(0, 3), at=(0, 3), reason="stale")
START = StartEntry(generation=1, settings=Settings(max_staleness=1, groups_per_step=2))
FIRST = (START, announced(1, 0), step(1, trained(0, 1), trained(1, 1)), announced(2, 1),
         CheckpointEntry(generation=1, step=1, manifest_sha256="a"),
         step(2, trained(2, 1), drops=(DROP,), reward=0.75), announced(3, 2))  # fmt: skip


def test_a_line_counts_what_ended_and_how_old_it_was():
    found = line_of(*FIRST)
    learner = found.learner(have=3, steps=24)
    assert (learner.generation, learner.step, learner.steps, learner.have, learner.need) == (1, 2, 24, 3, 2)
    assert (learner.version, learner.rewards, learner.dropped) == (3, (0.5, 0.75), {"stale": 1})
    assert learner.staleness == {0: 2, 1: 1}, "in updates: the third group was answered before the first update"
    assert (found.trained, found.consumed) == (3, {0: 4})
    assert found.has_consumed((0, 3), (0, 3))
    assert not found.has_consumed((0, 9), (0, 2)), "the learner holds groups back"


def test_a_start_cuts_off_the_steps_after_its_checkpoint():
    found = line_of(*FIRST, StartEntry(generation=2, continues=Position(generation=1, step=1)), announced(4, 1, 2))
    learner = found.learner(have=0, steps=None)
    assert (learner.generation, learner.continues, learner.lost_steps, learner.step) == (2, 1, 1, 1)
    assert (found.trained, found.dropped, found.consumed, learner.version) == (2, {}, {0: 2}, 4)
    assert not found.has_consumed((0, 2), (0, 2))


def test_a_start_after_a_last_checkpoint_loses_nothing():
    found = line_of(*FIRST, StartEntry(generation=2, continues=Position(generation=1, step=2)))
    assert (found.learner(0, None).lost_steps, found.trained) == (0, 3)


def test_before_the_first_step_there_is_little_to_say():
    assert line_of().learner(have=0, steps=None).generation == 0
    assert line_of(START).learner(have=0, steps=None).need == 2
