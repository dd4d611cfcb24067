"""The graphs of both pipelines, read from their protos, and what runners make of them."""

import json
import re
import socket
from itertools import pairwise

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.periodicsequence import PeriodicImpulse
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import CombiningValueStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Duration, Timestamp

from pipelines.graph import features as f
from pipelines.graph import show
from pipelines.graph.features import of_requirements
from pipelines.graph.graph import graph_of, read
from pipelines.graph.runners import TABLE, Answer, answer_of, judge
from schemas.config import KafkaConfig, RunConfig
from tests.support.cli import caller


@pytest.fixture(scope="module")
def graphs():
    """Both, built where nobody may open a connection."""
    config = RunConfig(name="g", kafka=KafkaConfig(bootstrap="127.0.0.1:1"))
    opened = []
    with pytest.MonkeyPatch.context() as patched:
        for opens in ("connect", "connect_ex", "bind"):
            patched.setattr(socket.socket, opens, lambda _, address: opened.append(address))
        built = {name: graph_of(name, config) for name in ("rollout", "join-feedback")}
    assert not opened
    return built


@pytest.fixture
def asyncflow(monkeypatch, capsys, graphs):
    """The verb, with graphs that are built already."""
    monkeypatch.setattr("pipelines.cli.logs.configure_logging", lambda: None)
    monkeypatch.setattr("pipelines.graph.graph.graph_of", lambda name, config: graphs[name])
    return caller(capsys)


def test_steps_and_edges_are_those_of_the_design(graphs):
    graph = graphs["rollout"]
    names = [step.name for step in graph.steps]
    assert names[:5] == ["Generate/Shares", "Generate/Read", "Generate/Unbatch", "Score", "Assemble"]
    assert [(edge.source, edge.target) for edge in graph.edges[:4]] == list(pairwise(names[:5]))
    elements = {edge.source: edge.element for edge in graph.edges}
    assert elements["Generate/Shares"] == "BatchSource"
    assert elements["Assemble"] == "OutputRecord"
    assert [edge.is_unbounded for edge in graph.edges][:2] == [False, True]
    assert graph.edges[-1].target is None
    fork = {edge.target for edge in graphs["join-feedback"].edges if edge.source == "Join/Unbatch"}
    assert fork == {"Join/Keyed", "Join/Flatten"}


def test_what_each_uses_is_in_the_proto(graphs):
    one_stage = {f.UNBOUNDED_SOURCE, f.FINALIZATION, f.TRIGGERS, f.LAST_SHUFFLE}
    assert set(graphs["rollout"].uses) == one_stage, "one fused stage: neither state nor a shuffle that is read"
    assert set(graphs["join-feedback"].uses) == {*one_stage, f.STATE, f.WATERMARK_TIMERS, f.MERGE}
    assert graphs["join-feedback"].uses[f.STATE] == ("Join/Join", "Commit/Write")
    for graph in graphs.values():
        told = {name.split(":")[-2] for name in graph.requirements}
        stateful = {"stateful"} if f.STATE in graph.uses else set()
        assert told == {"splittable_dofn", "finalization", *stateful}, "payloads and requirements say the same"


@pytest.mark.parametrize(
    ("pipeline", "runner", "answer"),
    [
        ("rollout", "prism", Answer.RUNS),
        ("rollout", "fnapi", Answer.RUNS),
        ("rollout", "flink", Answer.SHOULD),
        ("join-feedback", "prism", Answer.RUNS),
        ("join-feedback", "fnapi", Answer.NOT),
        ("join-feedback", "dataflow", Answer.SHOULD),
    ],
)
def test_a_runners_answer_is_the_worst_of_what_is_used(graphs, pipeline, runner, answer):
    verdicts = judge(runner, graphs[pipeline].uses)
    assert answer_of(verdicts) == max(TABLE[runner][feature][0] for feature in graphs[pipeline].uses) == answer


def test_the_exit_code_is_1_for_a_runner_that_does_not(asyncflow):
    assert asyncflow("graph", "join-feedback", "--runner", "fnapi", "--format", "dot").returncode == 1
    assert asyncflow("graph", "join-feedback", "--runner", "prism").returncode == 0


def test_what_nobody_has_looked_at_is_a_no():
    uses = of_requirements(["beam:requirement:pardo:stateful:v1", "beam:requirement:pardo:stable_input:v1"])
    (verdict,) = judge("prism", uses)
    assert verdict.feature == "beam:requirement:pardo:stable_input:v1"
    assert verdict.answer == Answer.NOT
    assert "nobody has looked" in verdict.why


COUNT = CombiningValueStateSpec("count", sum)
TIMER = TimerSpec("timer", TimeDomain.REAL_TIME)
COUNT_PARAM = beam.DoFn.StateParam(COUNT)
TIMER_PARAM = beam.DoFn.TimerParam(TIMER)


class Ticking(beam.DoFn):
    """State, and a timer by the clock."""

    def process(self, element, count=COUNT_PARAM, timer=TIMER_PARAM):
        yield element

    @on_timer(TIMER)
    def fire(self):
        return []


def test_other_features_are_found_too():
    pipeline = beam.Pipeline(options=PipelineOptions([], streaming=True))
    ticks = pipeline | "Ticks" >> PeriodicImpulse(fire_interval=1.0)
    windows = ticks | "Windows" >> beam.WindowInto(beam.window.FixedWindows(Duration(1)))
    keyed = windows | "Keyed" >> beam.Map(lambda at: (0, at)).with_output_types(tuple[int, Timestamp])
    grouped = keyed | "Group" >> beam.GroupByKey()
    one = pipeline | "One" >> beam.Create([1])
    # Two steps: Beam takes any input of a stateful DoFn for the keyed one, by the order of hashes
    ticking = grouped | "Ticking" >> beam.ParDo(Ticking())
    _ = ticking | "Beside" >> beam.Map(lambda each, beside: each, beam.pvalue.AsList(one))
    graph = read("x", "run", *pipeline.to_runner_api(return_context=True))
    assert graph.uses[f.SHUFFLE] == ("Group",)
    assert graph.uses[f.STATE] == graph.uses[f.CLOCK_TIMERS] == ("Ticking",)
    assert graph.uses[f.SIDE_INPUTS] == ("Beside",)
    assert "Windows" in graph.uses[f.WINDOWS]
    assert f.UNBOUNDED_SOURCE in graph.uses
    assert f.LAST_SHUFFLE not in graph.uses
    assert answer_of(judge("fnapi", graph.uses)) == Answer.NOT


def test_text_names_every_step_use_and_runner(graphs, asyncflow):
    done = asyncflow("graph", "join-feedback")
    assert done.returncode == 0, "without a runner no answer is wrong"
    for word in (
        [step.name for step in graphs["join-feedback"].steps] + list(TABLE) + list(graphs["join-feedback"].uses)
    ):
        assert word in done.stdout
    assert re.search(r"^fnapi +does not$", done.stdout, re.MULTILINE)
    assert max(map(len, done.stdout.splitlines())) <= 120


def test_json_is_everything(graphs, asyncflow):
    tree = json.loads(asyncflow("graph", "rollout", "--format", "json", "--runner", "prism").stdout)
    assert [step["name"] for step in tree["steps"]] == [step.name for step in graphs["rollout"].steps]
    assert tree["runners"]["prism"]["answer"] == "runs"
    assert set(tree["runners"]) == {"prism"}
    assert {row["feature"] for row in tree["runners"]["prism"]["features"]} == set(tree["uses"])


@pytest.mark.parametrize(("draw", "arrow"), [(show.to_mermaid, r"^  (s\d+) [=-]+>"), (show.to_dot, r"^  (s\d+) ->")])
def test_pictures_have_every_step_once_and_every_edge(graphs, draw, arrow):
    graph = graphs["join-feedback"]
    drawn = draw(graph)
    assert drawn.count("subgraph") == 2, "Join and Commit"
    assert len(re.findall(arrow, drawn, re.MULTILINE)) == sum(edge.target is not None for edge in graph.edges)
    for number, _ in enumerate(graph.steps):
        assert re.search(rf"\bs{number}( ?\[)", drawn)


def test_no_pipeline_and_a_misspelt_one_are_told(monkeypatch, capsys):
    monkeypatch.setattr("pipelines.cli.logs.configure_logging", lambda: None)
    call = caller(capsys)
    for arguments in ([], ["rolout"]):
        done = call("graph", *arguments)
        assert done.returncode == 2
        assert "rollout" in done.stderr
