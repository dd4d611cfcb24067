"""The real server, a real broker and a tiny model: versions change while answers are being generated."""

import asyncio
import json
import signal
import socket
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest
import tomli_w

from pipelines.cli.main import main
from pipelines.evaluation.ask import Asker
from pipelines.evaluation.prompts import load_registries
from pipelines.local.ports import free_ports
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas.config import (
    KafkaConfig,
    ModelConfig,
    RolloutConfig,
    RunConfig,
    SamplingConfig,
    WeightsConfig,
    WorkerConfig,
)  # fmt: skip
from schemas.errors import BrokerError, ModelError, PortError
from schemas.gateway import GatewayConfig
from schemas.identity import GroupId
from schemas.prompts import Message, Prompt, RewardSpec, Sampling
from schemas.weights import WeightVersion, version_path
from schemas.workers import WorkerEntry
from tests.support.gateway import Gateway, events_of, rows_of, text_of
from tests.support.tasks import write_data
from tests.support.trajectories import read_all, wait_until
from tests.support.weights import announce, probe_of, publish_version, state_of, write_version
from tests.support.worker import WorkerProcess
from transforms.generation.engine import open_session
from transforms.generation.request import PromptRecord, Request
from transforms.generation.streaming import generate_streamed
from transforms.generation.tokenizer import Tokenizer
from transforms.generation.worker.announcements import Announcements
from transforms.generation.worker.server import run

PROMPT = (1, 9, 16, 10, 18)
START_S = 180
_AHEAD = 1
"""Workers that start while another is tested: a start is imports, one after the other, on one core."""


def make_config(broker, directory: Path) -> RunConfig:
    return RunConfig(
        name=f"test-{uuid4().hex[:12]}",
        kafka=KafkaConfig(bootstrap=broker),
        model=ModelConfig(path=str(directory / "model"), dtype="float32"),
        weights=WeightsConfig(root=str(directory / "weights")),
        worker=WorkerConfig(
            port=free_ports(1)[0],
            max_num_seqs=8,
            kv_cache_gib=0.25,
            max_wait_for_version_s=60,
            max_model_len_tokens=2048,
        ),
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Four tiny models of one architecture that answer differently."""
    from transformers import LlamaForCausalLM

    made = [build_tiny_model(tmp_path_factory.mktemp(f"model-{seed}"), seed=seed) for seed in range(4)]
    return made[0], [LlamaForCausalLM.from_pretrained(path) for path in made]


def announcement(version):
    return WeightVersion(
        version=version, step=version, generation=1, manifest_sha256="0" * 64, dtype="float32", base_model="tiny",
        published_at=datetime(2026, 1, 31, tzinfo=UTC),
    )  # fmt: skip


class Stage:
    """A worker with what its learner would need. It was up before anything was announced."""

    def __init__(self, directory, broker, models) -> None:
        path, self._loaded = models
        (directory / "model").symlink_to(path)
        self.config = make_config(broker, directory)
        create_topics(self.config)
        self.models = {}
        self.worker = WorkerProcess(directory, self.config)

    def wait_until_serving(self) -> None:
        """Publishes the first version, if that was not done yet."""
        if not self.models:
            self.worker.wait_for_log("engine_warm", START_S)
            self.status_before = self.worker.status()
            self.publish()

    @property
    def version(self) -> int:
        """The newest version that was written."""
        return max(self.models, default=0)

    def write(self, **changes):
        """Writes the next version, of other weights than the last one's, and returns its announcement."""
        version = self.version + 1
        model = self.models[version] = self._loaded[version % len(self._loaded)]
        facts = {"probe": probe_of(model), **changes}
        return write_version(self.config.weights.root, version, state_of(model), **facts)

    def publish(self) -> int:
        """Returns the next version once it is served."""
        announced = self.write()
        self.announce(announced)
        self.worker.wait_until_serving(announced.version, 60)
        return announced.version

    def announce(self, announced) -> None:
        announce(self.config.kafka.bootstrap, self.config.topics.weights, announced)

    def wait_until_refused(self, refused_before: int) -> dict:
        """Returns the status that shows one refusal more."""
        return wait_until(lambda: (status := self.worker.status())["refused"] > refused_before and status)


class Crew:
    """Workers of this module: one is tested while those that later tests will need are starting."""

    def __init__(self, make, needed: int) -> None:
        self._make, self._needed, self._started = make, needed, []

    def stage(self) -> Stage:
        """The first worker that no test has ended, serving."""
        alive = [stage for stage in self._started if stage.worker.process.poll() is None]
        if not alive:
            self._needed = max(self._needed, len(self._started) + 1)
        while len(alive) <= _AHEAD and len(self._started) < self._needed:
            self._started.append(self._make())
            alive.append(self._started[-1])
        alive[0].wait_until_serving()
        return alive[0]

    def end(self) -> None:
        for stage in self._started:
            stage.worker.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def crew(request, broker, tmp_path_factory, models):
    needed = sum("doomed" in getattr(item, "fixturenames", ()) for item in request.session.items)
    crew = Crew(lambda: Stage(tmp_path_factory.mktemp("stage"), broker, models), max(1, needed))
    yield crew
    crew.end()


@pytest.fixture
def stage(crew):
    """A worker that serves some version, shared with other tests: each publishes versions of its own."""
    return crew.stage()


@pytest.fixture
def doomed(crew):
    """Such a worker for a test that ends it."""
    return crew.stage()


def logprobs_of(model, response):
    """Of every response token after PROMPT, at temperature 1."""
    return probe_of(model, (*PROMPT, *response))["logprobs"][len(PROMPT) - 1 :]


def largest_difference(ours, theirs):
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def processes_left(started, timeout_s=15):
    gone_by = time.monotonic() + timeout_s
    while any(map(psutil.pid_exists, started)) and time.monotonic() < gone_by:
        time.sleep(0.1)
    return [process for process in started if psutil.pid_exists(process)]


def served_logprobs(choice):
    return [token["logprob"] for token in choice["logprobs"]["content"]]


def test_the_port_is_closed_until_the_first_version_is_loaded(stage):
    assert stage.status_before is None
    assert stage.worker.status()["version"] >= 1


def test_a_version_answers_with_the_logprobs_of_its_weights(stage):
    version = stage.publish()
    status, answer = stage.worker.generate(PROMPT, n=2, max_tokens=20, ignore_eos=True)
    assert status == 200
    for choice in answer["choices"]:
        assert choice["weight_versions"] == [{"version": f"{version}", "start": 0, "end": 20}]
        right = logprobs_of(stage.models[version], choice["token_ids"])
        assert largest_difference(served_logprobs(choice), right) < 1e-4


def test_an_evaluation_holds_answers_to_the_labels_of_their_prompts_and_others_stay_free(stage):
    version = stage.publish()
    words = ("yes", "no", "not at all", "n", "Yes, 2.5 or 3")
    label = RewardSpec(name="label", args={"answer": "yes", "labels": ["yes", "no", "not at all"]})
    near = RewardSpec(name="closeness", args={"answer": 2.6, "lowest": 0, "highest": 5})
    free = RewardSpec(name="last_number", args={"answer": "5"})
    sampling = Sampling(max_tokens=12, stop=("o",), min_tokens=6)
    prompts = [
        Prompt(messages=(Message(role="user", content=word),), reward=reward, sampling=sampling)
        for reward in (label, near, free)
        for word in words
    ]
    rollout = RolloutConfig(workers=(stage.worker.url,), discover=False)
    config = stage.config.model_copy(update={"rollout": rollout})
    load_registries(config)
    asker = Asker(config, prompts, Tokenizer.load(config.model.path))
    held, greedy = asker.constrained(version), asker.greedy(version)
    texts, before = [[text for each in answers for text in each.texts] for answers in (held, greedy)]
    assert len(texts) == len(before) == len(prompts)
    assert set(texts[:5]) <= {"yes", "no", "not at all"}
    assert set(texts[5:10]) <= {f"{step / 5:g}" for step in range(26)}
    assert texts[10:] == before[10:]
    assert not set(before[:10]) & {*texts[:10]}, "untrained it says no label by itself"
    assert [each.rewards for each in held[:5]] == [(float(text == "yes"),) for text in texts[:5]]
    assert {version} == {each for answers in held for each in answers.versions}


def test_a_run_is_asked_with_the_version_that_its_worker_serves(stage, tmp_path):
    version = stage.publish()
    tree = stage.config.model_dump(mode="json", exclude_none=True)
    tree["rollout"] |= {"workers": [stage.worker.url], "discover": False, "sampling": {"max_tokens": 4}}
    (tmp_path / "config.toml").write_text(tomli_w.dumps(tree))
    data, out = write_data(tmp_path), tmp_path / "report.json"
    asked = ("--tasks", "rte", "--data", data, "--config", tmp_path / "config.toml", "--out", out)
    assert main(["eval", *map(str, asked)]) == 0
    report = json.loads(out.read_text())
    assert (report["run"], report["version"], report["version_max"]) == (stage.config.name, version, version)
    assert [(task["task"], task["rows"], task["unanswered"]) for task in report["tasks"]] == [("rte", 1, 0)]


def test_a_seed_with_a_prompt_longer_than_a_step_ends_no_engine_on_a_cpu(stage):
    status, answer = stage.worker.generate(PROMPT * 300, seed=7, max_tokens=2, ignore_eos=True)
    assert (status, len(answer["choices"][0]["token_ids"])) == (200, 2)
    assert stage.worker.process.poll() is None


def test_an_update_in_flight_splits_the_answer_where_the_weights_changed(stage):
    before, answers = stage.worker.status(), []
    counted = 'asyncflow_worker_updates_total{in_flight="true"} '
    metric_before = sum(float(line.split()[-1]) for line in lines_of(stage, counted))

    def ask():
        answers.append(stage.worker.generate(PROMPT, n=4, max_tokens=1000, ignore_eos=True))

    asking = threading.Thread(target=ask)
    announced = stage.write()
    versions = (before["version"], announced.version)
    asking.start()
    while stage.worker.status()["requests_running"] == 0:
        time.sleep(0.02)
    stage.announce(announced)
    asking.join(300)
    status, answer = answers[0]
    assert status == 200
    for choice in answer["choices"]:
        old, new = choice["weight_versions"]
        cut = new["start"]
        expected = (f"{versions[0]}", 0, f"{versions[1]}", 1000)
        assert (old["version"], old["start"], new["version"], new["end"]) == expected
        assert old["end"] == cut
        assert 0 < cut < 1000
        mine = served_logprobs(choice)
        first, second = (logprobs_of(stage.models[version], choice["token_ids"]) for version in versions)
        assert largest_difference(mine[:cut], first[:cut]) < 1e-4
        assert largest_difference(mine[cut:], second[cut:]) < 1e-4
        assert largest_difference(first, second) > 0.1
    after = stage.worker.status()
    assert [after[name] - before[name] for name in ("updates", "updates_in_flight")] == [1, 1]
    assert [float(line.split()[-1]) for line in lines_of(stage, counted)] == [metric_before + 1]


def long_request():
    """For an answer of a thousand tokens, whatever the model draws."""
    prompt = Prompt(token_ids=PROMPT, reward=RewardSpec(name="feedback"))
    sampling = {"n": 1, "logprobs": 0, "temperature": 1.0, "max_tokens": 1000, "ignore_eos": True}
    record = PromptRecord(GroupId(0, 0), b"", datetime(2026, 1, 31, tzinfo=UTC))
    return Request(record, prompt, PROMPT, 1, sampling)


async def test_a_streamed_answer_has_the_tokens_the_logprobs_and_the_versions_of_a_whole_one(stage):
    announced, told = stage.write(), []
    before = stage.worker.status()["version"]

    def on_tokens(token_ids):
        if not told:
            stage.announce(announced)
        told.append(list(token_ids))

    async with open_session(120) as session:
        completion = await generate_streamed(session, stage.worker.url, long_request(), 1000, on_tokens)
    assert len(told) > 100
    assert [token for piece in told for token in piece] == list(completion.token_ids)
    old, new = completion.spans
    assert (old.version, old.start, new.version) == (before, 0, announced.version)
    assert 0 < new.start < len(completion.token_ids) == 1000
    for version, part in ((before, slice(0, new.start)), (announced.version, slice(new.start, None))):
        right = logprobs_of(stage.models[version], completion.token_ids)
        assert largest_difference(completion.logprobs[part], right[part]) < 1e-4


async def test_who_stops_reading_a_streamed_answer_stops_the_engine(stage):
    def drawn():
        (line,) = lines_of(stage, "vllm:generation_tokens_total")
        return float(line.split()[-1])

    before, began = drawn(), asyncio.Event()
    async with open_session(120) as session:
        asking = generate_streamed(session, stage.worker.url, long_request(), 1000, lambda _: began.set())
        task = asyncio.create_task(asking)
        await began.wait()
        task.cancel()
        await asyncio.wait([task])
    await asyncio.to_thread(wait_until, lambda: stage.worker.status()["requests_running"] == 0, 20)
    assert drawn() - before < 900


def test_a_gateway_finds_the_worker_and_records_what_it_said(stage):
    version = stage.publish()
    rollout = RolloutConfig(workers=(), group_size=8, sampling=SamplingConfig(max_tokens=100))
    update = {"gateway": GatewayConfig(port=free_ports(1)[0]), "rollout": rollout}
    config = stage.config.model_copy(update=update)
    with Gateway(config) as gateway, gateway.stream("what is 2+3?") as response:
        events = list(events_of(response))
    assert events[-2]["asyncflow"]["versions"] == [version]
    (row,) = rows_of(config)
    assert str(row.rollout_id) == response.headers["X-AsyncFlow-Rollout"]
    assert (row.worker, row.purpose) == (stage.worker.url, "feedback")
    assert text_of(events) == row.response_text
    whole = (*row.prompt_token_ids, *row.response_token_ids)
    right = probe_of(stage.models[version], whole)["logprobs"][len(row.prompt_token_ids) - 1 :]
    assert largest_difference(row.response_logprobs, right) < 1e-4


def lines_of(stage, start):
    return [line for line in stage.worker.metrics().splitlines() if line.startswith(start)]


def test_a_version_with_a_flipped_bit_is_refused_and_the_old_one_is_served_until_a_good_one_comes(stage):
    version, before = stage.publish(), stage.worker.status()
    announced = stage.write()
    file = Path(version_path(stage.config.weights.root, announced.version)) / "model.safetensors"
    value = bytearray(file.read_bytes())
    value[-1] ^= 1
    file.write_bytes(value)
    stage.announce(announced)
    assert stage.wait_until_refused(before["refused"])["version"] == version
    assert lines_of(stage, 'asyncflow_worker_updates_refused_total{reason="bad_files"}')
    _, answer = stage.worker.generate(PROMPT, max_tokens=5, ignore_eos=True)
    (choice,) = answer["choices"]
    right = logprobs_of(stage.models[version], choice["token_ids"])
    assert largest_difference(served_logprobs(choice), right) < 1e-4
    assert stage.publish() == announced.version + 1


def test_a_request_for_a_newer_version_waits_for_it_and_is_answered_by_it(stage):
    version, answers = stage.version + 1, []
    asking = threading.Thread(
        target=lambda: answers.append(stage.worker.generate(PROMPT, min_version=version, max_tokens=5, ignore_eos=True))
    )
    asking.start()
    time.sleep(1)
    assert answers == []
    assert stage.publish() == version
    asking.join(60)
    status, answer = answers[0]
    assert status == 200
    assert answer["choices"][0]["weight_versions"] == [{"version": f"{version}", "start": 0, "end": 5}]


CHANGING = (
    "update_weights",
    "collective_rpc",
    "pause",
    "sleep",
    "reset_prefix_cache",
    "scale_elastic_ep",
    "invocations",
)


@pytest.mark.parametrize("path", CHANGING)
def test_no_route_that_changes_something_is_there(stage, path):
    answer = httpx.post(f"{stage.worker.url}/{path}", json={}, timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "NotFoundError")


def test_records_that_are_no_announcement_are_passed_over(stage):
    before = stage.worker.status()
    stage.announce(b"not json")
    assert stage.wait_until_refused(before["refused"])["version"] == before["version"]
    assert "bad_announcement" in stage.worker.log


def test_sigterm_ends_the_worker_with_0_and_no_process_stays(doomed):
    started = doomed.worker.descendants()
    assert doomed.worker.stop() == 0
    assert processes_left(started) == []
    said = said_by(doomed)
    assert {(entry.url, entry.max_num_seqs) for entry in said} == {(doomed.worker.url, 8)}
    assert [entry.state for entry in said[-2:]] == ["up", "leaving"]
    assert said[-1].version == doomed.version


def said_by(stage):
    """What a worker wrote into the registry."""
    return [WorkerEntry.decode(record.value) for record in read_all(stage.config, stage.config.topics.workers)]


def test_weights_that_contradict_their_probe_end_the_worker(doomed):
    started = doomed.worker.descendants()
    doomed.announce(doomed.write(probe=probe_of(doomed.models[doomed.version])))
    assert doomed.worker.process.wait(60) == 1
    assert "the engine's logprobs of the probe differ from the learner's" in doomed.worker.log
    assert doomed.worker.status() is None
    assert processes_left(started) == []


def test_an_engine_that_dies_ends_the_worker(doomed):
    children = psutil.Process(doomed.worker.process.pid).children()
    started = doomed.worker.descendants()
    next(child for child in children if "EngineCore" in child.name()).kill()
    assert doomed.worker.process.wait(60) == 1
    assert "the vLLM engine process died" in doomed.worker.log
    assert {entry.state for entry in said_by(doomed)} == {"up"}, "who leaves does not die: that it died must show"
    assert processes_left(started) == []


def test_a_killed_worker_leaves_no_process(doomed):
    started = doomed.worker.descendants()
    doomed.worker.stop(signal.SIGKILL)
    assert processes_left(started) == []


@pytest.fixture
def ready(broker, tmp_path, models):
    """The configuration of a worker that could start."""
    path, _ = models
    (tmp_path / "model").symlink_to(path)
    return make_config(broker, tmp_path)


def test_sigterm_while_the_engine_starts_ends_the_worker_with_0_and_no_process_stays(ready):
    create_topics(ready)
    with WorkerProcess(Path(ready.weights.root).parent, ready) as worker:
        worker.wait_for_log("Initializing a V1 LLM engine", START_S)
        started = worker.descendants()
        assert worker.stop(timeout_s=90) == 0
        assert processes_left(started) == []


def test_a_port_in_use_is_told_before_anything_starts(ready):
    with socket.socket() as other:
        other.bind((ready.worker.host, ready.worker.port))
        other.listen()
        with pytest.raises(PortError, match=f"worker.port {ready.worker.port}: Address already in use"):
            run(ready)


def test_a_missing_topic_is_named(ready):
    with pytest.raises(BrokerError, match=f"topic {ready.topics.weights} does not exist"):
        run(ready)


def test_a_missing_model_is_named(ready):
    missing = ready.model_copy(update={"model": ModelConfig(path="/no/such/model")})
    with pytest.raises(ModelError, match="/no/such/model"):
        run(missing)


def test_a_broker_that_does_not_answer_is_told_in_bounded_time(ready):
    kafka = KafkaConfig(bootstrap=f"127.0.0.1:{free_ports(1)[0]}", request_timeout_s=1)
    with pytest.raises(BrokerError, match="cannot be reached"):
        run(ready.model_copy(update={"kafka": kafka}))


def test_a_setting_that_vllm_refuses_is_the_users_to_mend(ready, models):
    create_topics(ready)
    worker = ready.worker.model_copy(update={"max_model_len_tokens": 10_000})
    topic = ready.topics.weights
    publish_version(ready.weights.root, 1, models[1][1], bootstrap=ready.kafka.bootstrap, topic=topic)
    directory = Path(ready.weights.root).parent
    with WorkerProcess(directory, ready.model_copy(update={"worker": worker})) as process:
        assert process.process.wait(START_S) == 1  # the traceback of a UserError that no command line caught
        assert "ConfigError: vLLM refuses the worker's settings" in process.log


def test_only_the_newest_of_several_announcements_is_taken(run_config):
    announced = [announcement(version) for version in (1, 2, 3)]
    for one in announced:
        announce(run_config.kafka.bootstrap, run_config.topics.weights, one)
    source = Announcements(run_config)
    try:
        assert source.newest(10) == announced[2]
        assert source.newest(0.2) is None
        announce(run_config.kafka.bootstrap, run_config.topics.weights, announcement(4))
        assert source.newest(10) == announcement(4)
    finally:
        source.close()
