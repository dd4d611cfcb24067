"""Traces through all processes: of two prompts and a question at a gateway, up to a worker's next version.

The engine is simulated, and so is what the worker loads the weights into; all else is as in a run.
"""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from kafka import KafkaProducer
from prometheus_client import CollectorRegistry

from pipelines.local.ports import free_ports
from schemas import traces
from schemas.config import validate
from schemas.trace_context import TraceContext
from tests.pipeline.rollout_process import JoinProcess, RolloutProcess, Topics
from tests.support.gateway import Gateway
from tests.support.learners import learner_config
from tests.support.simulated_engine import SimulatedEngine
from tests.support.spans import read_spans
from transforms.generation.worker.announcements import Announcements
from transforms.generation.worker.engine import Loading
from transforms.generation.worker.follower import Follower
from transforms.generation.worker.reader import Reader
from transforms.generation.worker.state import Metrics, WorkerState
from transforms.generation.worker.store import WeightStore
from transforms.generation.worker.verify import read_expectation

SENDER = TraceContext("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", sampled=True)
ASKER = TraceContext("1af7651916cd43dd8448eb211c80319c", "c7ad6b7169203331", sampled=True)
JUDGE = TraceContext("2af7651916cd43dd8448eb211c80319c", "d7ad6b7169203331", sampled=True)
STAGES = ("queue", "generate", "score", "assemble", "write")


@dataclass
class Loaded:
    """What a worker loads weights into: it answers the probe as the learner did."""

    logprobs: list = field(default_factory=list)

    async def open_files(self, files):
        assert files

    async def load(self, version, probe_token_ids):
        return Loading(0.0, 0.0, 0.0, self.logprobs)


@pytest.fixture
def engine():
    with SimulatedEngine(obliging=True) as running:
        yield running


@pytest.fixture
def config(run_config, engine, tmp_path, model_dir):
    """A learner that ends after one step of three groups, each of which teaches whatever its rewards are."""
    learner = {"groups_per_step": 3, "steps": 1, "objective": {"advantage": "running_baseline"}}
    tree = learner_config(run_config, tmp_path, model_dir, **learner).model_dump(mode="json")
    tree["rollout"] |= {"workers": [engine.url], "discover": False, "group_size": 2}
    tree["rollout"]["sampling"] |= {"max_tokens": 64}
    tree["worker"] |= {"max_model_len_tokens": 256}
    tree["gateway"] |= {"port": free_ports(1)[0]}
    tree["feedback"] |= {"settle_s": 0.2, "wait_s": 600.0}
    tree["tracing"] |= {"exporter": "file", "directory": str(tmp_path / "traces")}
    return validate(tree, "test")


def send(config, *headers):
    """One prompt for each list of headers."""
    producer = KafkaProducer(**config.kafka.producer_options())
    value = {"token_ids": [7, 6], "reward": {"name": "last_number", "args": {"answer": "5"}}}
    for each in headers:
        producer.send(config.topics.prompts, json.dumps(value).encode(), headers=each)
    producer.close()


def ask_and_judge(gateway):
    """A question and a judgement, each of a client that traces."""
    body = {"messages": [{"role": "user", "content": "2+3"}], "user": "ann"}
    answer = gateway.http.post("/v1/chat/completions", json=body, headers={"traceparent": ASKER.header()})
    judged = {"rollout_id": answer.json()["asyncflow"]["rollout"], "kind": "thumb", "value": 1, "user": "ann"}
    told = gateway.http.post("/feedback", json=judged, headers={"traceparent": JUDGE.header()})
    assert told.status_code == httpx.codes.ACCEPTED, told.text


async def load_newest(config):
    """What a worker does with the version that the step made; its number."""
    verifying = Reader(WeightStore(config.weights.root), read_expectation(Path(config.model.path), 256))
    loaded = Loaded()

    async def read(announced):
        verified = verifying.read(announced)
        loaded.logprobs = list(verified.probe.logprobs)
        return verified

    source = Announcements(config)
    state = WorkerState(Metrics(CollectorRegistry()), 256)
    try:
        announced = source.newest(60)
        follower = Follower(source, read, loaded, state, 1e-3, source.trace_of)
        assert await follower.take(announced)
    finally:
        source.close()
    return announced.version


def run_all(config, nursery, directory):
    """From prompts to a worker's next version; this process is the gateway first, and the worker then."""
    send(config, [("traceparent", SENDER.header().encode())], [("traceparent", b"broken")])
    nursery.start(config, directory)
    traces.open_tracing(config.tracing, config.name, "gateway")
    try:
        with RolloutProcess(config, directory) as rollout, JoinProcess(config, directory) as join:
            with Gateway(config) as gateway:
                ask_and_judge(gateway)
            assert nursery.wait(200) == 0, nursery.said()[-3000:]
            assert rollout.drain() == 0, rollout.log.read_text()[-3000:]
            assert join.drain() == 0, join.log.read_text()[-3000:]
        traces.open_tracing(config.tracing, config.name, "worker")
        assert asyncio.run(load_newest(config)) == 2
    finally:
        traces.close_tracing()


def test_traces_go_through_all_processes(config, nursery, engine, tmp_path):
    run_all(config, nursery, tmp_path)
    found = read_spans(tmp_path / "traces")
    by_id = {(span.trace_id, span.span_id): span for span in found}
    assert len(by_id) == len(found), "no span has another one's name"

    def of(name, **facts):
        wanted = {f"asyncflow.{key}": value for key, value in facts.items()}
        return [span for span in found if span.name == name and wanted.items() <= span.attributes.items()]

    def below(span, name):
        """The last one, for Beam may have a bundle done twice."""
        return [each for each in found if (each.trace_id, each.parent_id, each.name) == (*id_of(span), name)][-1]

    (step,), (exchange,), (join,), (judgement,) = (of(name) for name in ("step", "exchange", "join", "judgement"))
    sent, begun = sorted(of("rollout"), key=lambda span: span.trace_id != SENDER.trace_id)

    # a prompt whose sender traces, and one whose header is broken
    assert (sent.trace_id, sent.parent_id) == (SENDER.trace_id, SENDER.span_id)
    assert begun.parent_id is None
    for rollout in (sent, begun):
        assert (rollout.service, rollout.fault) == ("asyncflow-rollout", None)
        assert rollout.attributes["asyncflow.outcome"] == "trajectories"
        stages = {name: below(rollout, name) for name in STAGES}
        assert all(rollout.began_ns <= span.began_ns <= span.ended_ns for span in stages.values())
        assert below(stages["generate"], "engine").attributes["asyncflow.worker"] == engine.url

    # a question, and what was said of its answer
    assert (exchange.service, exchange.trace_id, exchange.parent_id) == ("asyncflow-gateway", *id_of(ASKER))
    assert (judgement.service, judgement.trace_id, judgement.parent_id) == ("asyncflow-gateway", *id_of(JUDGE))
    assert below(exchange, "engine").attributes["asyncflow.worker"] == engine.url
    assert (below(exchange, "join"), join.service) == (join, "asyncflow-join-feedback")
    assert join.links == (id_of(judgement),)
    assert join.attributes["asyncflow.outcome"] == "joined"

    # the step that trained all three, and who loaded what it made
    assert (step.service, step.parent_id) == ("asyncflow-learn", None)
    assert sorted(step.links) == sorted(map(id_of, (sent, begun, exchange)))
    for group in (sent, begun, exchange):
        learn = below(group, "learn")
        assert (learn.service, learn.links) == ("asyncflow-learn", (id_of(step),))
        assert learn.attributes["asyncflow.step"] == 1
    assert below(step, "train").ended_ns <= below(step, "publish").began_ns <= below(step, "commit").ended_ns
    load = below(below(step, "publish"), "load")
    assert (load.service, load.attributes["asyncflow.version"], load.fault) == ("asyncflow-worker", 2, None)

    # what engines were told, what there is in the tables, and that the log is as without
    told = {TraceContext.parse(asked.traceparent)[:2] for asked in engine.requests}
    assert told == {id_of(span) for span in of("engine")}
    for span in found:
        form = traces.SPANS[span.name]
        assert span.service.removeprefix("asyncflow-") in form.process.split(", ")
        assert {name.removeprefix("asyncflow.") for name in span.attributes} <= set(form.attributes)
    assert set(traces.SPANS) - {span.name for span in found} == {"environment"}
    assert set(Topics(config).outcomes().values()) == {1, 2}, "the exchange is in pending and in trajectories"


def id_of(span):
    return span.trace_id, span.span_id
