"""What the parts are made of: brokers, learners in processes of their own, players of pipeline and worker.

    prompts ──► Player: samples from the announced weights, at a speed of its own ──► trajectories ──► learner ──► site
    asyncflow federate, a process ◄──federation's broker and store──► sites

Learners, coordinator and brokers are the real ones. A player is a named instrument in place of rollout pipeline and
vLLM worker, so that four loops fit on two cores: its answers are drawn from the newest announced weights of the tiny
model, and their logprobs are those of the draw. All is on the loopback interface of one host, without namespaces.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import numpy as np
import tomli_w
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipelines.audit import audit
from pipelines.local.broker import Broker
from pipelines.local.topics import create_topics
from pipelines.log import RunReader
from schemas.admission import AdmissionFrontier
from schemas.config import KafkaConfig, RunConfig, validate
from schemas.federation import Merge, SiteUpdate, decode_rounds_entry, weights_root
from schemas.identity import GroupId
from schemas.ledger import surviving_steps
from schemas.prompts import Prompt, RewardSpec
from schemas.topics import FederationTopics
from schemas.trajectories import Span, encode
from schemas.weights import WeightVersion, version_path
from tests.benchmarks.federated import digits
from tests.benchmarks.stack import ROOT
from tests.support.learners import Nursery
from tests.support.samples import group
from tests.support.trajectories import read_all, read_ledger

GROUP_SIZE = 16
_END = 2


class Player(threading.Thread):
    """Answers what is admitted, one prompt after the other.

    Args:
        config: of the run.
        model: directory of the model.
        seconds: for one group: how fast the site is.
        seed: of the draws.
    """

    def __init__(self, config, model, seconds, seed):
        super().__init__(daemon=True)
        self.config, self.seconds = config, seconds
        self._model_dir, self._chance, self._ended = model, np.random.default_rng(seed), threading.Event()
        self._version, self._table, self.fault = 0, None, None

    def run(self):
        try:
            self._play()
        except Exception as fault:  # noqa: BLE001 - raised again by stop()
            self.fault = fault

    def stop(self):
        self._ended.set()
        self.join(30)
        if self.fault:
            raise self.fault

    def _play(self):
        from transformers import AutoModelForCausalLM

        with _ONE_LOAD:
            self._model = AutoModelForCausalLM.from_pretrained(self._model_dir).eval()
        topics, kafka = self.config.topics, self.config.kafka
        consumer = KafkaConsumer(**kafka.consumer_options())
        names = (topics.weights, topics.admission, topics.prompts)
        consumer.assign([TopicPartition(name, p) for name in names for p in consumer.partitions_for_topic(name)])
        consumer.seek_to_beginning()
        producer = KafkaProducer(**kafka.producer_options())
        waiting = {number: deque() for number in range(kafka.partitions)}
        announced, frontier = None, {}
        due_s = time.monotonic()
        while not self._ended.is_set():
            for partition, records in consumer.poll(timeout_ms=20).items():
                for record in records:
                    if partition.topic == topics.weights:
                        announced = WeightVersion.decode(record.value)
                    elif partition.topic == topics.admission:
                        frontier = AdmissionFrontier.decode(record.value).frontier
                    else:
                        waiting[partition.partition].append((record.offset, Prompt.decode(record.value)))
            due_s = max(due_s, time.monotonic() - 0.1)  # what was not asked for in time is not made up for
            while due_s <= time.monotonic() and (found := _next(waiting, frontier)):
                due_s += self.seconds
                self._answer(producer, announced, *found)
        consumer.close()
        producer.close(timeout=1)

    def _answer(self, producer, announced, partition, offset, prompt):
        logprobs = self._logprobs(announced, prompt.token_ids)
        chosen = self._chance.choice(len(logprobs), GROUP_SIZE, p=np.exp(logprobs) / np.exp(logprobs).sum())
        right = digits.answer(digits.digit_of(prompt.token_ids))
        made = []
        for index, token in enumerate(chosen):
            made += group(
                partition, offset, size=1, run=self.config.name, attempt_id="only", task=prompt.task,
                prompt_token_ids=prompt.token_ids, response_token_ids=(int(token),),
                response_logprobs=(float(logprobs[token]),), loss_mask=(True,),
                weight_version_spans=(Span(announced.version, 0),), weight_version_min=announced.version,
                weight_version_max=announced.version, reward=float(token == right),
            )  # fmt: skip
            made[-1] = _numbered(made[-1], index)
        value, headers = encode(made)
        name = GroupId(partition, offset)
        producer.send(self.config.topics.trajectories, value, name.key(), list(headers.items()), partition)

    def _logprobs(self, announced, token_ids):
        """Of the one token that is answered."""
        import torch
        from safetensors.torch import load_file

        if announced.version != self._version:
            directory = Path(version_path(self.config.weights.root, announced.version))
            with contextlib.suppress(FileNotFoundError):  # pruned meanwhile: a newer one is on its way
                self._model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
                self._version = announced.version
        with torch.no_grad():
            logits = self._model(torch.tensor([token_ids])).logits[0, -1].double()
        return logits.log_softmax(0).numpy()


_ONE_LOAD = threading.Lock()
"""transformers takes ``tie_weights`` away from all models while it loads one."""


def _numbered(sample, index):
    from dataclasses import replace

    return replace(sample, sample_index=index)


def _next(waiting, frontier):
    """The oldest admitted prompt that nobody has answered; null if there is none."""
    for partition, prompts in sorted(waiting.items(), key=lambda item: item[1][0][0] if item[1] else 1 << 60):
        if prompts and prompts[0][0] < frontier.get(partition, 0):
            return (partition, *prompts.popleft())
    return None


@dataclass
class Loop:
    """A run with its player and its learner."""

    config: RunConfig
    directory: Path
    nursery: Nursery
    player: Player

    def start(self):
        self.player.start()
        self.learn()

    def learn(self):
        self.nursery.start(self.config, self.directory)

    def end(self):
        """Asks the learner to end, if it has not."""
        if self.nursery.pid and not self.nursery.has_ended():
            self.nursery.kill(signal.SIGTERM)
        code = self.nursery.wait(120) if self.nursery.pid else 0
        self.player.stop()
        return code

    def wait(self, timeout_s=600):
        """Until all steps are done."""
        if code := self.nursery.wait(timeout_s):
            raise RuntimeError(self.nursery.said()[-4000:])
        self.player.stop()
        return code

    def verdict(self):
        with RunReader(self.config.kafka, self.config.name) as reader:
            return audit(self.config.name, reader.advance())

    def samples(self):
        """That the surviving line trained."""
        return sum(part.samples for step in surviving_steps(read_ledger(self.config)) for part in step.trained)

    def newest_weights(self):
        """File of the newest version."""
        announced = WeightVersion.decode(read_all(self.config, self.config.topics.weights)[-1].value)
        return Path(version_path(self.config.weights.root, announced.version)) / "model.safetensors"


@dataclass
class Stage:
    """Brokers and learners' nurseries for all runs of a benchmark."""

    loops: int = 4
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self):
        made = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="asyncflow-federated-"))
        self.directory = Path(made)
        self.own = self._closing.enter_context(Broker(self.directory / "kafka-of-sites")).bootstrap
        self.shared = self._closing.enter_context(Broker(self.directory / "kafka-of-federation")).bootstrap
        self.nurseries = [self._closing.enter_context(Nursery()) for _ in range(self.loops)]
        return self

    def __exit__(self, *error):
        self._closing.__exit__(*error)

    def loop(self, number, model, shown, seconds, *, seed=0, federation=None, **learner):
        """A run that trains on some digits; nothing is started."""
        name = f"site{number}-{uuid4().hex[:6]}"
        directory = self.directory / name
        directory.mkdir()
        tree = _tree(name, model, directory, learner)
        tree |= {"kafka": {"bootstrap": self.own, "partitions": 2}, "federation": federation or {}}
        config = validate(tree, "of the benchmark")
        create_topics(config)
        _write_prompts(config, shown, 6000, seed)
        return Loop(config, directory, self.nurseries[number], Player(config, model, seconds, seed))

    def federation(self, model, **settings):
        """A coordinator; nothing is started."""
        return Coordinator(f"fed-{uuid4().hex[:6]}", self.shared, self.directory, model, settings)


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

    def __init__(self, name, bootstrap, directory, model, settings):
        self.name, self.kafka, self.topics = name, KafkaConfig(bootstrap=bootstrap), FederationTopics(name)
        self.store = directory / name
        self._file, self._log = directory / f"{name}.toml", directory / f"{name}.log"
        tree = {"name": name, "kafka": {"bootstrap": bootstrap}, "store": str(self.store), "model": str(model),
                "keep": 10000, **settings}  # fmt: skip
        self._file.write_text(tomli_w.dumps(tree))
        self.asynchronous = settings.get("asynchronous", False)
        self.process = None

    def section(self, number, **more):
        """What a site's configuration says."""
        return {"name": self.name, "site": f"site{number}", "kafka": {"bootstrap": self.kafka.bootstrap},
                "store": str(self.store), "heartbeat_s": 1.0, "asynchronous": self.asynchronous, **more}  # fmt: skip

    def start(self):
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.cli.main", "federate", "--config", str(self._file)],
                cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def said(self):
        return self._log.read_text()

    def audit(self):
        """The verdict of ``asyncflow federate --audit``."""
        command = [sys.executable, "-m", "pipelines.cli.main", "federate", "--config", str(self._file), "--audit"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        return {"code": done.returncode, **json.loads(done.stdout or "{}")}

    def end(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

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
