"""What the parts are made of: brokers, learners in processes of their own, players of pipeline and worker, on hosts.

    site-0 … site-3   a broker, a player and a learner each: prompts ──► trajectories ──► steps ──► updates
    federation        a broker and asyncflow federate

Learners, coordinator and brokers are the real ones; a player (:mod:`tests.benchmarks.federated.player`) is a named
instrument in place of rollout pipeline and vLLM worker. Each host is a network namespace with an address of its own
(:mod:`tests.support.hosts`); files, so the federation's store, are the machine's, as a shared file system would be.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import tomli_w
from kafka import KafkaConsumer, KafkaProducer

from pipelines.cli.logs import configure_logging
from pipelines.local.broker import Broker, Quorum, Seat
from pipelines.local.supervisor import Supervisor, tied_to_us
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, RunConfig, validate
from schemas.federation import Merge, SiteUpdate, decode_rounds_entry, weights_root
from schemas.ledger import surviving_steps
from schemas.prompts import Prompt, RewardSpec
from schemas.topics import FederationTopics
from schemas.weights import WeightVersion, version_path
from tests.benchmarks.federated import digits
from tests.benchmarks.stack import ROOT
from tests.support.hosts import Hosts
from tests.support.learners import Nursery
from tests.support.trajectories import read_all, read_ledger, verdict_of

GROUP_SIZE = 16
FEDERATION = "federation"
"""Host of the federation's broker and its coordinator."""
_KAFKA, _VOTES = 9092, 9093
_ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@dataclass
class Program:
    """A module of the project as a process, on a host."""

    host: str
    hosts: Hosts
    log: Path
    process: subprocess.Popen | None = None

    def start(self, *command):
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                tied_to_us(self.hosts.command(self.host, [sys.executable, "-m", *command])),
                cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **_ENVIRONMENT},
            )  # fmt: skip

    def said(self):
        return self.log.read_text()

    def end(self):
        """Asks it to end, if it has not; returns its exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


@dataclass
class Loop:
    """A run with its player and its learner."""

    config: RunConfig
    directory: Path
    nursery: Nursery
    player: Program
    seconds: float
    """Of a group of answers."""
    seed: int

    def start(self):
        self._play()
        self.learn()

    def _play(self):
        file = self.directory / "player.toml"
        file.write_text(tomli_w.dumps(self.config.model_dump(mode="json", exclude_none=True)))
        self.player.start("tests.benchmarks.federated.player", "--config", file, "--seconds", self.seconds,
                          "--seed", self.seed)  # fmt: skip

    def learn(self):
        self.nursery.start(self.config, self.directory)

    def end(self):
        """Asks the learner to end, if it has not."""
        if self.nursery.pid and not self.nursery.has_ended():
            self.nursery.kill(signal.SIGTERM)
        code = self.nursery.wait(120) if self.nursery.pid else 0
        self._stop_playing()
        return code

    def wait(self, timeout_s=600):
        """Until all steps are done."""
        if code := self.nursery.wait(timeout_s):
            raise RuntimeError(self.nursery.said()[-4000:])
        self._stop_playing()
        return code

    def _stop_playing(self):
        if code := self.player.end():
            raise RuntimeError(f"the player ended with {code}: {self.player.said()[-4000:]}")

    def verdict(self):
        return verdict_of(self.config)

    def samples(self):
        """That the surviving line trained."""
        return sum(part.samples for step in surviving_steps(read_ledger(self.config)) for part in step.trained)

    def newest_weights(self):
        """File of the newest version."""
        announced = WeightVersion.decode(read_all(self.config, self.config.topics.weights)[-1].value)
        return Path(version_path(self.config.weights.root, announced.version)) / "model.safetensors"


@dataclass
class Stage:
    """Hosts, brokers and learners' nurseries for all runs of a benchmark.

    Raises:
        NoHostsError: no namespaces can be made here.
    """

    loops: int = 4
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self):
        with contextlib.ExitStack() as made:
            made.enter_context(contextlib.redirect_stdout(sys.stderr))  # libraries print as they like
            self._make(made.enter_context)
            self._closing = made.pop_all()
        return self

    def _make(self, enter):
        configure_logging()
        self.directory = Path(enter(tempfile.TemporaryDirectory(prefix="asyncflow-federated-")))
        sites = [f"site-{number}" for number in range(self.loops)]
        self.hosts = enter(Hosts([*sites, FEDERATION]))
        self._brokers = enter(Supervisor(self.directory / "logs", self.directory))
        self.shared, *self.own = self._serve(FEDERATION, *sites)
        self.nurseries = [enter(Nursery(lambda each, site=site: self.hosts.command(site, each))) for site in sites]

    def _serve(self, *hosts):
        """A broker on each; returns where they are reached."""
        found = []
        for host in hosts:
            quorum = Quorum([Seat(self.hosts.address(host), _KAFKA, _VOTES)])
            broker = Broker(self.directory / f"kafka-of-{host}", quorum=quorum)
            self._brokers.start(self.hosts.on(host, broker.spec(host)))
            found.append(broker.bootstrap)
        self._brokers.wait_ready(*hosts)
        return found

    def __exit__(self, *error):
        self._closing.__exit__(*error)

    def loop(self, number, model, shown, seconds, *, seed=0, federation=None, **learner):
        """A run that trains on some digits; nothing is started."""
        name = f"site{number}-{uuid4().hex[:6]}"
        directory = self.directory / name
        directory.mkdir()
        tree = _tree(name, model, directory, learner)
        tree |= {"kafka": {"bootstrap": self.own[number], "partitions": 2}, "federation": federation or {}}
        config = validate(tree, "of the benchmark")
        create_topics(config)
        _write_prompts(config, shown, 6000, seed)
        player = Program(f"site-{number}", self.hosts, directory / "player.log")
        return Loop(config, directory, self.nurseries[number], player, seconds, seed)

    def federation(self, model, **settings):
        """A coordinator; nothing is started."""
        return Coordinator(f"fed-{uuid4().hex[:6]}", self, model, settings)


def _tree(name, model, directory, learner):
    return {
        "name": name,
        "model": {"path": str(model), "dtype": "float32"},
        "weights": {"root": str(directory / "weights"), "keep": 4},
        "rollout": {"group_size": GROUP_SIZE, "sampling": {"max_tokens": 1}},
        "learner": {
            "groups_per_step": 12, "max_staleness": 1, "learning_rate": 1e-3, "checkpoint_every": 100000,
            "checkpoint_root": str(directory / "checkpoints"), "trackers": [],
            "objective": {"advantage": "running_baseline"}, **learner,
        },
    }  # fmt: skip


def _write_prompts(config, shown, number, seed):
    producer = KafkaProducer(**config.kafka.producer_options())
    for index, tokens in enumerate(digits.training_prompts(shown, number, seed)):
        prompt = Prompt(
            token_ids=tokens, task=f"digit-{digits.digit_of(tokens)}", reward=RewardSpec(name="exact_match")
        )
        producer.send(config.topics.prompts, prompt.encode(), partition=index % config.kafka.partitions)
    producer.flush()
    producer.close()


class Coordinator:
    """``asyncflow federate`` as a process."""

    def __init__(self, name, stage, model, settings):
        self.name, self.kafka, self.topics = name, KafkaConfig(bootstrap=stage.shared), FederationTopics(name)
        self.store, self._file = stage.directory / name, stage.directory / f"{name}.toml"
        tree = {"name": name, "kafka": {"bootstrap": stage.shared}, "store": str(self.store), "model": str(model),
                "keep": 10000, **settings}  # fmt: skip
        self._file.write_text(tomli_w.dumps(tree))
        self.asynchronous = settings.get("asynchronous", False)
        self._program = Program(FEDERATION, stage.hosts, stage.directory / f"{name}.log")

    def section(self, number, **more):
        """What a site's configuration says."""
        return {"name": self.name, "site": f"site{number}", "kafka": {"bootstrap": self.kafka.bootstrap},
                "store": str(self.store), "heartbeat_s": 1.0, "asynchronous": self.asynchronous, **more}  # fmt: skip

    @property
    def process(self):
        return self._program.process

    def start(self):
        self._program.start("pipelines.cli.main", "federate", "--config", self._file)

    def said(self):
        return self._program.said()

    def audit(self):
        """The verdict of ``asyncflow federate --audit``."""
        command = [sys.executable, "-m", "pipelines.cli.main", "federate", "--config", str(self._file), "--audit"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        return {"code": done.returncode, **json.loads(done.stdout or "{}")}

    def end(self):
        self._program.end()

    def versions(self):
        """Announcements of global versions."""
        return [WeightVersion.decode(record.value) for record in read_all(self, self.topics.weights)]

    def updates(self):
        """All announcements of updates."""
        return [SiteUpdate.decode(record.value) for record in read_all(self, self.topics.updates)]

    def merges(self):
        entries = (decode_rounds_entry(record.value) for record in read_all(self, self.topics.rounds))
        return [entry for entry in entries if isinstance(entry, Merge)]

    def is_there(self):
        """Whether the topics are."""
        consumer = KafkaConsumer(**self.kafka.consumer_options())
        try:
            return self.topics.weights in consumer.topics()
        finally:
            consumer.close()

    def file(self, version):
        return Path(version_path(weights_root(str(self.store)), version)) / "model.safetensors"
