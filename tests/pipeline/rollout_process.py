"""The pipelines as processes of their own, as the local stack starts them, and what the first one wrote."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import tomli_w
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from schemas import trajectories
from schemas.admission import AdmissionFrontier
from schemas.dead_letters import DeadLetter


class RolloutProcess:
    """Starts the pipeline and ends everything of it at the end."""

    verb = "rollout"

    def __init__(self, config, directory, beam_args=(), cwd=None):
        file = directory / f"{self.verb}.toml"  # of its own: another process may be reading its file already
        file.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
        self.log = directory / f"{self.verb}.log"
        self._output = self.log.open("ab")
        self._begins = self._output.tell()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.main", self.verb, "--config", str(file), *beam_args],
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

    def hears_signals(self):
        """Whether its pool is open; the log may be that of earlier processes too."""
        return b"share_opened" in self.log.read_bytes()[self._begins :]

    def kill(self):
        """kill -9 of the process and what it started, as the supervisor's last resort."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def drain(self, timeout_s=60):
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with suppress(ProcessLookupError):  # Prism outlives a pipeline that was killed
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()


class JoinProcess(RolloutProcess):
    """The feedback pipeline in the same way."""

    verb = "join-feedback"


class Topics:
    """Writes prompts and admission, reads what the pipeline wrote."""

    def __init__(self, config):
        self.config = config
        self._producer = KafkaProducer(**config.kafka.producer_options())

    def send_prompts(self, values, partition=None):
        """Writes record values; returns the group ids as (partition, offset)."""
        partitions = self.config.kafka.partitions
        sent = [
            self._producer.send(
                self.config.topics.prompts, value, partition=index % partitions if partition is None else partition
            )
            for index, value in enumerate(values)
        ]
        self._producer.flush()
        return [(future.get(10).partition, future.get(10).offset) for future in sent]

    def admit(self, *ends, version=1):
        """Moves the frontier of partitions 0, 1, ..."""
        record = AdmissionFrontier(version=version, generation=1, frontier=dict(enumerate(ends)))
        self._producer.send(self.config.topics.admission, record.encode())
        self._producer.flush()

    def read(self, topic):
        """Every committed record of a topic, as of now."""
        consumer = KafkaConsumer(**self.config.kafka.consumer_options())
        partitions = [TopicPartition(topic, p) for p in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        consumer.seek_to_beginning(*partitions)
        records = []
        while any(consumer.position(p) < ends[p] for p in partitions):
            records += [record for batch in consumer.poll(200).values() for record in batch]
        consumer.close()
        return records

    def groups(self, topic=None):
        """All groups of the trajectories topic (or another), each a list of samples."""
        records = self.read(topic or self.config.topics.trajectories)
        return [group for record in records for group in trajectories.decode(record.value, dict(record.headers))]

    def letters(self):
        """All dead letters."""
        return [DeadLetter.decode(record.value) for record in self.read(self.config.topics.dead_letters)]

    def outcomes(self):
        """How often each prompt has come out, as group or dead letter."""
        everywhere = [tuple(samples[0].group) for samples in self.groups() + self.groups(self.config.topics.pending)]
        return Counter(everywhere + [tuple(letter.group) for letter in self.letters()])


def wait_for(condition, timeout_s=120, process=None, poll_s=0.2):
    """Returns the first true result of ``condition()``."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        if process is not None and process.process.poll() is not None:
            raise AssertionError(f"the pipeline ended: {process.log.read_text()[-3000:]}")
        time.sleep(poll_s)
    raise AssertionError(f"not within {timeout_s} s" + (f": {process.log.read_text()[-3000:]}" if process else ""))
