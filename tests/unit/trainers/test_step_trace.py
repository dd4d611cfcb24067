"""The spans of a step and of its groups: linked with each other, recorded if one of the groups is."""

from schemas import traces
from schemas.identity import GroupId
from schemas.ledger import StepEntry
from schemas.trace_context import TraceContext
from tests.support.samples import group
from tests.support.spans import tracing
from trainers.planner import Arrival
from trainers.step_trace import StepTrace


def arrival(offset, trace):
    return Arrival(GroupId(0, offset), (0, offset), tuple(group(0, offset)), trace=trace, read_s=100.0)


def entry(*arrivals):
    trained = tuple(each.trained() for each in arrivals)
    return StepEntry(generation=2, step=11, version=13, trained=trained, dropped=())


def test_a_step_and_its_groups_are_linked(tmp_path):
    with tracing(tmp_path, "learn") as read:
        contexts = [traces.begin(str(number), None, "test") for number in range(200)]
        arrivals = [arrival(offset, context) for offset, context in enumerate(contexts)]
        begun = StepTrace.begin(arrivals)
        begun.end(entry(*arrivals))
        found = read()
    (step,) = [span for span in found if span.name == "step"]
    named = tuple((context.trace_id, context.span_id) for context in contexts)
    assert step.links == named, "more than the 128 that OpenTelemetry keeps by itself"
    facts = {"asyncflow.step": 11, "asyncflow.generation": 2, "asyncflow.version": 13}
    assert step.attributes == {**facts, "asyncflow.groups": 200}
    learned = {span.trace_id: span for span in found if span.name == "learn"}
    assert len(learned) == 200
    for each, context in zip(arrivals, contexts, strict=True):
        span = learned[context.trace_id]
        assert (span.parent_id, span.began_ns) == (context.span_id, 100_000_000_000)
        assert span.links == ((step.trace_id, step.span_id),)
        assert span.attributes == {"asyncflow.group": str(each.group), **facts}


def test_a_step_is_recorded_if_one_of_its_groups_is(tmp_path):
    sampled, other = (TraceContext.begin(name, ratio) for name, ratio in (("a", 1.0), ("b", 0.0)))
    with tracing(tmp_path, "learn", ratio=0.0) as read:
        for contexts in ((sampled, other), (other,), (None,)):
            arrivals = [arrival(offset, context) for offset, context in enumerate(contexts)]
            StepTrace.begin(arrivals).end(entry(*arrivals))
        found = read()
    assert sorted(span.name for span in found) == ["learn", "step"]
    (step,) = [span for span in found if span.name == "step"]
    assert {trace_id for trace_id, _ in step.links} == {sampled.trace_id, other.trace_id}


def test_a_step_that_trained_nothing_says_so(tmp_path):
    with tracing(tmp_path, "learn") as read:
        StepTrace.begin([]).end(entry())
        (step,) = read()
    assert (step.name, step.fault) == ("step", "nothing was trained")


def test_where_tracing_is_off_there_is_none():
    begun = StepTrace.begin([arrival(0, None)])
    begun.end(entry(arrival(0, None)))
    assert begun.context is None
    assert begun.followed == ()


def test_samples_are_not_kept_until_the_step_is_committed(tmp_path):
    with tracing(tmp_path, "learn"):
        sent = traces.begin("a", None, "test")
        begun = StepTrace.begin([arrival(0, sent), arrival(1, None)])
    assert begun.followed == ((GroupId(0, 0), sent, 100.0),)
