"""What topics and endpoints say together."""

from pipelines.top.endpoints import Page, Reading
from pipelines.top.explain import explain
from pipelines.top.state import Endpoint, Learner, Stage, Worker
from pipelines.top.topics import LogView
from pipelines.top.watch import Watched, compose
from schemas.config import RunConfig

URL = "http://w:8000"
WATCHED = Watched(RunConfig(name="x"), {})


def view(at, trained):
    return LogView(at, (Stage("trained", trained),), Learner(generation=1, version=5, version_at=0.0),
                   (Worker(URL, "up", 4, 1.0, 64),), {}, ())  # fmt: skip


def reading(*pages, process="worker", url=f"{URL}/metrics"):
    return Reading(Endpoint(process, url, 0.0), tuple(Page(at, samples) for at, samples in pages))


def figures(version, tokens, refused=None):
    told = {"asyncflow_worker_weight_version": version, "vllm:num_requests_running": 16,
            "vllm:generation_tokens_total": tokens}  # fmt: skip
    return {name: [({}, float(value))] for name, value in told.items()} | (
        {} if refused is None else {"asyncflow_worker_updates_refused_total": [({"reason": "sha256"}, float(refused))]}
    )


def test_a_worker_is_told_by_its_page_and_the_engine_by_all_of_them():
    now = compose(WATCHED, [view(0.0, 2), view(4.0, 10)], [reading((0.0, figures(5, 0)), (4.0, figures(5, 800)))], 0.0)
    assert now.stage("trained").per_s == 2.0
    assert (now.workers[0].version, now.workers[0].running, now.workers[0].tokens_per_s) == (5, 16, 200.0)
    assert (now.engine.occupancy, now.engine.tokens_per_s, now.engine.workers_up) == (0.25, 200.0, 1)


def test_the_pipeline_says_why_places_are_empty_and_the_learner_what_it_does():
    slots = "asyncflow_rollout_slot_seconds_total"
    pipeline = [(at, {slots: [({"state": "filled"}, filled), ({"state": "admission"}, empty)],
                      "asyncflow_rollout_workers_up": [({"share": "0"}, 3.0), ({"share": "1"}, 3.0)]})
                for at, filled, empty in ((0.0, 0.0, 0.0), (4.0, 3.0, 1.0))]  # fmt: skip
    learner = {"asyncflow_learner_groups_waiting": [({}, 7.0)],
               "asyncflow_learner_state": [({"state": "training"}, 1.0), ({"state": "waiting"}, 0.0)]}  # fmt: skip
    readings = [reading(*pipeline, process="rollout", url="r"), reading((4.0, learner), process="learner", url="l")]
    now = compose(WATCHED, [view(4.0, 10)], readings, 0.0)
    assert (now.engine.occupancy, now.engine.empty, now.engine.workers_up) == (0.75, {"admission": 0.25}, 3)
    assert (now.learner.have, now.learner.state) == (7, "training")


def test_the_first_refusal_is_told():
    """The counter is not served before it."""
    history = [compose(WATCHED, [view(float(at), 1)], [reading((float(at), figures(5, 0, refused)))], 0.0)
               for at, refused in ((0, None), (1, 1))]  # fmt: skip
    assert any("refused 1 weight version" in sentence.text for sentence in explain(history))


def test_a_broker_that_is_silent_is_told_from_then_on():
    assert compose(WATCHED, [view(0.0, 1)], [], 1.0).broker_silent_s == 0.0
    assert compose(WATCHED, [view(0.0, 1)], [], 5.0).broker_silent_s == 5.0
