"""A run behind locked doors: every process under its own principal, and no secret but where it was put."""

import asyncio
import json
import threading
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest
import tomli_w
from prometheus_client import CollectorRegistry

from pipelines.acls import create_acls
from pipelines.audit import audit
from pipelines.cli.main import main
from pipelines.client import Client
from pipelines.curriculum.report import Window
from pipelines.curriculum.source import Order, Source
from pipelines.evaluation.announcements import read_results
from pipelines.local.ports import free_ports
from pipelines.local.topics import create_topics
from pipelines.log import RunReader, TopicReader, read_topic
from pipelines.report.page import write_report
from pipelines.submit import submit
from pipelines.top.topics import TopicsWatcher
from schemas.config import validate
from schemas.outcomes import Outcome
from schemas.trajectories import decode
from tests.pipeline.rollout_process import JoinProcess, RolloutProcess, wait_for
from tests.support.curriculum import make_pool
from tests.support.gateway import Gateway
from tests.support.locks import NAME
from tests.support.simulated_engine import SimulatedEngine
from trainers.log import read_topic as read_records
from trainers.log import topic_ids
from transforms.generation.worker.announcements import Announcements
from transforms.generation.worker.registrar import Registrar
from transforms.generation.worker.state import Metrics, WorkerState

pytestmark = pytest.mark.timeout(900)
STEPS, PROMPTS = 2, 30
_LONG_S = 180
"""For what takes some seconds, on a machine with much else to do."""
WORKER_KEY, RECEIPT_KEY, JUDGE_KEY = "canary-of-the-workers", "canary-of-the-receipts", "canary-of-the-judge"
LEARNER_VARIABLE, JUDGE_VARIABLE = "LOCKED_LEARNER", "LOCKED_JUDGE"
SECTIONS = {"learner": "learner", "rollout": "rollout", "join": "feedback"}
"""Of the configuration, by the names of processes."""
TIMES = {"settle_s": 0.5, "wait_s": 60, "correction_s": 60, "unknown_after_s": 60}


@dataclass
class Scene:
    """The run, and what was seen of its processes while it went on."""

    locks: object
    directory: Path
    tree: dict
    asked: list = field(default_factory=list)
    """What an engine was asked."""
    commands: dict = field(default_factory=dict)
    """Words and environment of each process and its children, by its name."""
    listening: dict = field(default_factory=dict)
    """Addresses, by the name of a process."""
    pages: dict = field(default_factory=dict)
    """Of figures, by the name of a process."""
    codes: dict = field(default_factory=dict)
    """Exit codes."""
    verdict: object = None

    def config(self, role, **more):
        """Of the run, for a process of this role."""
        kafka = self.locks.kafka(role, **more).model_dump() | {"partitions": 2}
        return validate({**self.tree, "kafka": kafka}, "test")

    def look(self, name, pid):
        """Notes what can be seen of a process from outside."""
        first = psutil.Process(pid)
        self._note(name, first)
        for child in first.children(recursive=True):
            with suppress(psutil.Error):  # it has ended since it was listed
                self._note(name, child)

    def _note(self, name, process):
        self.commands.setdefault(name, []).append((process.cmdline(), process.environ()))
        listening = [each.laddr for each in process.net_connections() if each.status == psutil.CONN_LISTEN]
        self.listening.setdefault(name, set()).update(listening)

    def read(self, name, port):
        """Keeps the page of a process, once it serves one."""
        self.pages[name] = wait_for(lambda: _page(port), _LONG_S)


def _page(port):
    try:
        return urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    except OSError:
        return None


@pytest.fixture(scope="module")
def scene(locks, model_dir, tmp_path_factory, _nursery):
    """A run that is over: prompts answered and trained, an answer of a gateway and one of the pipeline judged."""
    directory = tmp_path_factory.mktemp("run")
    keys = {"worker.key": WORKER_KEY, "receipts.key": RECEIPT_KEY}
    for name, key in keys.items():
        (directory / name).write_text(key)
    ports = dict(zip(("rollout", "learner", "feedback", "gateway"), free_ports(4), strict=True))
    scene = Scene(locks, directory, tree_of(directory, model_dir, ports))
    create_acls(scene.config("admin"), 60)
    create_topics(scene.config("operator"), 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(JUDGE_VARIABLE, JUDGE_KEY)
        run_all(scene, _nursery, ports)
    look_back(scene)
    return scene


def tree_of(directory, model_dir, ports):
    """The configuration of the run, but for who connects."""
    judge = {"url": "http://127.0.0.1:9", "model": "m", "key_env": JUDGE_VARIABLE}
    return {
        "name": NAME,
        "model": {"path": str(model_dir), "dtype": "float32"},
        "weights": {"root": str(directory / "weights")},
        "worker": {"api_key": f"{{file:{directory / 'worker.key'}}}", "max_model_len_tokens": 256},
        "rollout": {"workers": [], "group_size": 4, "max_in_flight": 8, "sampling": {"max_tokens": 8},
                    "metrics_port": ports["rollout"]},
        "rewards": {"modules": ["tests.support.chance_reward"], "judges": {"strict": judge}},
        "learner": {"steps": STEPS, "groups_per_step": 3, "max_staleness": 2, "metrics_port": ports["learner"],
                    "checkpoint_root": str(directory / "checkpoints")},
        "feedback": {**TIMES, "key_file": str(directory / "receipts.key"), "metrics_port": ports["feedback"]},
        "gateway": {"port": ports["gateway"]},
    }  # fmt: skip


def prompts():
    chance = {"name": "by_chance", "args": {"share": 0.5}}
    return [json.dumps({"token_ids": [7, 6], "reward": chance}).encode() for _ in range(PROMPTS)]


@contextmanager
def announced(config, url):
    """A worker that serves at the URL, as far as the broker hears of it: what it reads and what it says."""
    told = config.model_copy(update={"worker": config.worker.model_copy(update={"advertise": url})})
    stop = threading.Event()

    async def serve():
        registrar = Registrar(told, WorkerState(Metrics(CollectorRegistry()), 256))
        registrar.start()
        await asyncio.to_thread(stop.wait)
        await registrar.leave()
        registrar.close()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        with closing(Announcements(told)) as announcements:
            assert wait_for(lambda: announcements.newest(1), _LONG_S)
        yield
    finally:
        stop.set()
        thread.join(_LONG_S)


def run_all(scene, nursery, ports):
    learner = scene.config("learner", password=f"{{env:{LEARNER_VARIABLE}}}")
    password = {LEARNER_VARIABLE: scene.locks.passwords[f"{NAME}-learner"]}
    for name in SECTIONS:
        (scene.directory / name).mkdir()
    with ExitStack() as opened:
        engine = opened.enter_context(SimulatedEngine(obliging=True, mean_tokens=4, api_key=WORKER_KEY))
        opened.callback(nursery.end)
        nursery.start(learner, scene.directory / "learner", **password)
        scene.read("learner", ports["learner"])
        scene.look("learner", nursery.pid)
        opened.enter_context(announced(scene.config("worker"), engine.url))
        rollout = opened.enter_context(RolloutProcess(scene.config("rollout"), scene.directory / "rollout"))
        join = opened.enter_context(JoinProcess(scene.config("join-feedback"), scene.directory / "join"))
        gateway = opened.enter_context(Gateway(scene.config("gateway")))
        judge(scene, gateway)
        assert submit(scene.config("producer"), prompts()) == PROMPTS
        scene.codes["learner"] = nursery.wait(_LONG_S)
        wait_for(lambda: len(judged(scene)) == 2, _LONG_S, join)
        for name, process in (("rollout", rollout), ("join", join)):
            scene.read(name, ports[SECTIONS[name]])
            scene.look(name, process.process.pid)
        scene.read("gateway", ports["gateway"])
        (scene.directory / "held-out.jsonl").write_bytes(prompts()[0])
        scene.codes["evaluator"] = evaluate(scene)
        scene.codes |= {"rollout": rollout.drain(_LONG_S), "join": join.drain(_LONG_S)}
        scene.asked = [*engine.requests]


def judge(scene, gateway):
    """Two questions: one is judged where it was asked, the other by a program that follows the answers."""
    first, second = (gateway.ask("1+1=", user="ann").json()["asyncflow"] for _ in range(2))
    told = gateway.judge(first["rollout"], "thumb", 1, user="ann", receipt=first["receipt"])
    assert told.status_code == 202, told.text
    kafka = scene.config("simulator").kafka
    with closing(TopicReader(kafka, f"{NAME}.pending")) as reader:
        seen = {str(sample.rollout_id) for record in reader.read_on() for sample in samples_in(record)}
    assert seen == {first["rollout"], second["rollout"]}
    password = {"sasl_plain_password": scene.locks.passwords[f"{NAME}-simulator"]}
    with Client(kafka.bootstrap, NAME, kafka.client | password) as client:
        client.send_feedback(second["rollout"], "thumb", -1, user="ann", receipt=second["receipt"])


def samples_in(record):
    return [sample for group in decode(record.value, dict(record.headers)) for sample in group]


def judged(scene):
    """What the feedback pipeline made of answers, as a reader sees it."""
    outcomes = read_topic(scene.config("reader").kafka, f"{NAME}.outcomes", Outcome.decode)
    return [outcome for outcome in outcomes if outcome.kind == "joined"]


def evaluate(scene):
    file = scene.directory / "evaluator.toml"
    file.write_text(tomli_w.dumps(scene.config("evaluator").model_dump(mode="json", exclude_none=True)))
    return main(["evaluate", "--config", str(file), "--prompts", str(scene.directory / "held-out.jsonl")])


def look_back(scene):
    """The roles that come when a run is there already."""
    with closing(Source(scene.config("curriculum"), Order((make_pool("a", 4),), ahead=2), Window())) as source:
        assert source.advance() > 0
    scorer, topic = scene.config("scorer"), f"{NAME}.trajectories"
    assert topic_ids(scorer, [topic])[topic]
    assert read_records(scorer, topic)
    reader = scene.config("reader")
    with RunReader(reader.kafka, NAME) as log:
        scene.verdict = audit(NAME, log.advance())
    with closing(TopicsWatcher(reader, str)) as watcher:
        assert watcher.look().learner
    write_report(reader, None, scene.directory / "report.html")


def test_each_process_does_its_work_under_its_own_principal(scene):
    assert scene.codes == dict.fromkeys(("learner", "evaluator", "rollout", "join"), 0)
    assert scene.verdict.ok, scene.verdict.faults
    assert scene.verdict.trained >= 3 * STEPS
    assert {result.version for result in read_results(scene.config("reader"))} >= {STEPS + 1}


def test_a_secret_is_nowhere_but_where_it_was_put(scene):
    secrets = {*scene.locks.passwords.values(), WORKER_KEY, RECEIPT_KEY, JUDGE_KEY}
    assert not found_in(scene.pages, secrets)
    assert not found_in(records(scene), secrets)
    files = {str(file): file.read_bytes().decode("latin-1") for file in scene.directory.rglob("*") if file.is_file()}
    assert any(name.endswith("report.html") for name in files)
    assert sum(name.endswith(".log") for name in files) == 3
    assert found_in(files, secrets) == {
        str(scene.directory / "worker.key"): {WORKER_KEY}, str(scene.directory / "receipts.key"): {RECEIPT_KEY},
    }  # fmt: skip


def test_a_secret_is_in_no_command_and_in_the_environment_of_nobody_else(scene):
    secrets = {*scene.locks.passwords.values(), WORKER_KEY, RECEIPT_KEY}
    words = {name: json.dumps([command for command, _ in seen]) for name, seen in scene.commands.items()}
    assert not found_in(words, {*secrets, JUDGE_KEY})
    environments = {name: json.dumps([environment for _, environment in seen]) for name, seen in scene.commands.items()}
    assert set(environments) == set(SECTIONS)
    found = found_in(environments, secrets)
    inherited = {scene.locks.passwords[f"{NAME}-learner"]}  # by what the learner starts: an environment is inherited
    assert found in ({}, {"learner": inherited})


def test_what_listens_is_declared(scene):
    """Of ours. docs/security.md says what Beam, Prism and torch open beside it."""
    ports = {name: {each.port for each in seen if each.ip == "127.0.0.1"} for name, seen in scene.listening.items()}
    metrics = {name: scene.tree[section]["metrics_port"] for name, section in SECTIONS.items()}
    assert ports["rollout"] == {metrics["rollout"]}
    assert ports["join"] == {metrics["join"]}
    assert metrics["learner"] in ports["learner"]
    assert {each.ip for each in scene.listening["learner"]} == {"127.0.0.1"}


def records(scene):
    """Everything that the topics of the run hold, by place."""
    kafka, found = scene.config("reader").kafka, {}
    for spec in scene.config("reader").topics.specs(2):
        with closing(TopicReader(kafka, spec.name)) as reader:
            for record in reader.read_on():
                found[spec.name, record.partition, record.offset] = str((record.key, record.value, record.headers))
    return found


def found_in(texts, secrets):
    """Which of the secrets stand in which of the texts."""
    found = {name: {secret for secret in secrets if secret in text} for name, text in texts.items()}
    return {name: secrets for name, secrets in found.items() if secrets}
