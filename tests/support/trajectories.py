"""An instrument that plays producers, pipeline and workers towards the learner, on a real broker.

    write_prompts → prompts → Rollouts (follows admission and weights, answers, scores) → trajectories

Its answers are random tokens; their logprobs are those of the announced weights, computed with
transformers, so that the learner must find them again.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from copy import deepcopy
from functools import cache
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipelines.audit import audit
from pipelines.log import RunReader
from schemas.admission import AdmissionFrontier
from schemas.identity import GroupId
from schemas.ledger import StepEntry, decode_entry, surviving_steps
from schemas.manifests import MANIFEST_NAME, Manifest
from schemas.prompts import Prompt, RewardSpec
from schemas.trajectories import Span, encode
from schemas.weights import WeightVersion, version_path
from tests.support.samples import group

_WORDS = range(6, 80)


def write_prompts(config, number, *, seed=0):
    """Writes prompts of random token ids to all partitions in turn."""
    draw = random.Random(seed)
    producer = KafkaProducer(**config.kafka.producer_options())
    for index in range(number):
        prompt = Prompt(token_ids=tuple(draw.choices(_WORDS, k=4)), reward=RewardSpec(name="exact_match"))
        producer.send(config.topics.prompts, prompt.encode(), partition=index % config.kafka.partitions)
    producer.flush()
    producer.close()


def write_records(config, records):
    """Writes values with headers to the trajectories topic, whatever they are."""
    producer = KafkaProducer(**config.kafka.producer_options())
    for value, headers in records:
        producer.send(config.topics.trajectories, value, None, list(headers.items()), 0)
    producer.flush()
    producer.close()


def read_all(config, topic):
    """All committed records of a topic."""
    consumer = KafkaConsumer(**config.kafka.consumer_options())
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    ends, records = consumer.end_offsets(partitions), []
    while any(consumer.position(partition) < ends[partition] for partition in partitions):
        records += [record for batch in consumer.poll(timeout_ms=100).values() for record in batch]
    consumer.close()
    return records


def verdict_of(config):
    """What the audit says of a run."""
    with RunReader(config.kafka, config.name) as reader:
        return audit(config.name, reader.advance())


def read_ledger(config):
    """All entries of the ledger."""
    return [decode_entry(record.value) for record in read_all(config, config.topics.ledger)]


class Rollouts(threading.Thread):
    """Answers every admitted prompt once, until :meth:`stop`.

    Args:
        reward: from group and sample index to a reward or None.
        lag: from group to how many versions its answers are behind the newest announced one.
        send: whether a group is written at all; gives the groups that are lost on the way.
    """

    def __init__(self, config, model_dir, *, group_size=4, reward=None, lag=None, send=None):
        super().__init__(daemon=True)
        self.config, self.group_size = config, group_size
        self.lag = lag or (lambda group: 0)
        self.reward = reward or (lambda group, index: float(index % 2))
        self.send = send or (lambda group: True)
        self.fault = None
        self.answered = {}
        self._base, self._ended = _base_model(model_dir), threading.Event()

    def stop(self):
        self._ended.set()
        self.join(60)
        if self.fault:
            raise self.fault

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def run(self):
        try:
            self._run()
        except Exception as fault:  # noqa: BLE001 - raised again by stop()
            self.fault = fault

    def _run(self):
        topics = self.config.topics
        consumer = KafkaConsumer(**self.config.kafka.consumer_options())
        names = (topics.weights, topics.admission, topics.prompts)
        consumer.assign([TopicPartition(name, p) for name in names for p in consumer.partitions_for_topic(name)])
        consumer.seek_to_beginning()
        producer = KafkaProducer(**self.config.kafka.producer_options(topics.rollout_id(0)))
        producer.init_transactions()
        versions, frontier, prompts = [], None, {}
        while not self._ended.is_set():
            for partition, records in consumer.poll(timeout_ms=50).items():
                for record in records:
                    if partition.topic == topics.weights:
                        versions.append(WeightVersion.decode(record.value))
                    elif partition.topic == topics.admission:
                        frontier = AdmissionFrontier.decode(record.value)
                    else:
                        prompts[GroupId(partition.partition, record.offset)] = Prompt.decode(record.value)
            if not frontier or not versions or versions[-1].version < frontier.version:
                continue
            for name in sorted(prompts, key=lambda name: (name.offset, name.partition)):
                if name not in self.answered and frontier.admits(*name):
                    self._answer(producer, name, prompts[name], versions[max(0, len(versions) - 1 - self.lag(name))])
        consumer.close()
        producer.close(timeout=1)

    def _answer(self, producer, name, prompt, announced):
        samples = self.make_group(name, prompt.token_ids, announced)
        self.answered[name] = samples
        if self.send(name):
            value, headers = encode(samples)
            producer.begin_transaction()
            where = name.offset % self.config.kafka.partitions
            producer.send(self.config.topics.trajectories, value, name.key(), list(headers.items()), where)
            producer.commit_transaction()  # its marker makes the offsets skip, as in production

    def make_group(self, name, token_ids, announced, attempt="first"):
        """Random answers to one prompt with their logprobs under an announced version."""
        draw = random.Random(f"{name}")
        answers = [tuple(draw.choices(_WORDS, k=draw.randint(2, 9))) for _ in range(self.group_size)]
        samples = group(*name, size=self.group_size, run=self.config.name, attempt_id=attempt)
        model = self._load(announced)
        made = []
        for index, (sample, answer) in enumerate(zip(samples, answers, strict=True)):
            made.append(
                type(sample)(
                    **{
                        **{slot: getattr(sample, slot) for slot in sample.__slots__},
                        "prompt_token_ids": token_ids,
                        "response_token_ids": answer,
                        "response_logprobs": _logprobs(model, token_ids, answer),
                        "loss_mask": (True,) * len(answer),
                        "weight_version_spans": (Span(announced.version, 0),),
                        "weight_version_min": announced.version,
                        "weight_version_max": announced.version,
                        "reward": self.reward(name, index),
                    }
                )
            )
        return made

    def _load(self, announced):
        import torch
        from safetensors.torch import load_file

        directory = Path(version_path(self.config.weights.root, announced.version))
        manifest = Manifest.decode((directory / MANIFEST_NAME).read_bytes(), announced.manifest_sha256)
        model = deepcopy(self._base).to(getattr(torch, manifest.facts["dtype"]))
        if manifest.facts["kind"] == "adapter":
            from peft import PeftModel

            return PeftModel.from_pretrained(model, directory).eval()
        missing, unexpected = model.load_state_dict(load_file(directory / "model.safetensors"), strict=False)
        assert not unexpected
        assert missing in ([], ["lm_head.weight"])
        return model.eval()


@cache
def _base_model(directory):
    """Loaded once."""
    from transformers import AutoModelForCausalLM

    from trainers.loading import LOADING

    with LOADING:
        return AutoModelForCausalLM.from_pretrained(directory)


def _logprobs(model, prompt, answer):
    import torch

    tokens = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logprobs = model(tokens).logits[0].float().log_softmax(1)
    return tuple(float(logprobs[len(prompt) + i - 1, token]) for i, token in enumerate(answer))


@cache
def shared_ranks():
    """The one process group of this process: DeepSpeed cannot live through a second one."""
    from trainers.ranks import Ranks

    return Ranks()


def learn(config, stop=None):
    """A learner in this process."""
    from trainers.learn import lead
    from trainers.log import broker_errors

    with broker_errors(config):
        lead(config, shared_ranks(), stop or threading.Event())


def steps_of(config):
    """The step entries of the ledger, those of dead lines too."""
    return [entry for entry in read_ledger(config) if isinstance(entry, StepEntry)]


def assert_consistent(config):
    """What must hold of every run, from the topics alone."""
    entries = read_ledger(config)
    line = surviving_steps(entries)
    assert [entry.step for entry in line] == list(range(1, len(line) + 1))
    ended = Counter(part.group for entry in line for part in (*entry.trained, *entry.dropped)
                    if getattr(part, "reason", None) != "duplicate")  # fmt: skip
    assert set(ended.values()) <= {1}, "a group ended twice in the surviving line"
    announced = [WeightVersion.decode(record.value) for record in read_all(config, config.topics.weights)]
    versions = [record.version for record in announced]
    assert versions == sorted(set(versions)), "a version was used twice or went back"
    steps = {record.version: record.step for record in announced}
    for entry in line:
        for trained in entry.trained:
            assert entry.step - 1 - steps[trained.versions[0]] <= config.learner.max_staleness
    last = {}
    for record in read_all(config, config.topics.admission):
        frontier = AdmissionFrontier.decode(record.value)
        assert all(offset >= last.get(partition, 0) for partition, offset in frontier.frontier.items())
        last = frontier.frontier
    return entries, line


class LearnerProcess:
    """A learner in a process of its own, so that it can be killed."""

    def __init__(self, config, directory, *, ranks=1):
        self.log = directory / "learner.log"
        (directory / "config.json").write_text(config.model_dump_json())
        code = (
            "import sys, pathlib; from schemas.config import RunConfig; from trainers.learn import run;"
            "sys.exit(run(RunConfig.model_validate_json(pathlib.Path(sys.argv[1]).read_text())))"
        )
        script = directory / "learner_main.py"
        script.write_text(code)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
        path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
        threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}  # cores are shared with the tests
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *launcher, str(script), str(directory / "config.json")],
                stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path, **threads},
            )  # fmt: skip

    def wait(self, timeout_s=120):
        return self.process.wait(timeout_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def tail(self):
        return self.log.read_text()[-4000:]


def wait_until(condition, timeout_s=90, every_s=0.2):
    """Returns the first true value of the condition."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(every_s)
    raise TimeoutError(f"not within {timeout_s} s: {condition}")


def weight_hash(config, version):
    """The sha256 of a version's tensors, as its manifest says."""
    path = Path(version_path(config.weights.root, version)) / MANIFEST_NAME
    return json.loads(path.read_text())["files"][0]["sha256"]
