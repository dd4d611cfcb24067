"""What benchmarks of generation are made of: a real broker, a real pipeline process, engines, and a watch.

Bench: broker ──► Run: topics, engine processes, pipeline process on Prism ──► Watch: who came when
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pyarrow as pa
from kafka import KafkaConsumer, TopicPartition

from pipelines.local.broker import Broker
from pipelines.local.ports import free_ports
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas.config import RunConfig
from tests.pipeline.rollout_process import RolloutProcess, Topics, wait_for

ROOT = Path(__file__).parents[2]
PARTITIONS = 2
EVERYTHING = 2**40


def end_orderly():
    """From now on SIGTERM ends this process with code 1, through whatever closes what it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))


def begin(out):
    """Before a stack starts: SIGTERM ends it orderly, figures have a place, its processes find this checkout."""
    end_orderly()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


class EngineProcess:
    """A simulated engine as a process; its numbers are those of ``SimulatedEngine``."""

    def __init__(self, **numbers):
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"
        settings = [part for name, number in numbers.items() for part in ("--set", f"{name}={number}")]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.simulated_engine", "--port", str(self.port), *settings],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": "."},
        )

    def is_healthy(self):
        with contextlib.suppress(OSError), urlopen(f"{self.url}/health", timeout=1):
            return True
        return False

    def set(self, **numbers):
        """Sets numbers while it runs."""
        urlopen(Request(f"{self.url}/simulated", json.dumps(numbers).encode()), timeout=5).close()

    def end(self):
        self.process.kill()
        self.process.wait()


@dataclass
class Watch:
    """Reads committed trajectories as a learner would, in a thread, and notes when each group could be read."""

    config: RunConfig
    fetch_wait_ms: int = 5
    """How long the broker may keep a fetch that finds nothing: short waits load the machine that is measured."""
    times_s: list = field(default_factory=list)
    """When each group could be read, in seconds of the Unix clock, ascending."""
    latencies_s: list = field(default_factory=list)
    """From its last token until then."""
    tokens: int = 0

    def __enter__(self):
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()

    def _follow(self):
        options = {**self.config.kafka.consumer_options(), "fetch_max_wait_ms": self.fetch_wait_ms}
        consumer = KafkaConsumer(**options)
        partitions = range(self.config.kafka.partitions)
        consumer.assign([TopicPartition(self.config.topics.trajectories, partition) for partition in partitions])
        consumer.seek_to_beginning(*consumer.assignment())
        while not self._stopped.is_set():
            for records in consumer.poll(200).values():
                now_s = time.time()
                for record in records:
                    self._note(record.value, now_s)
        consumer.close()

    def _note(self, value, now_s):
        table = pa.ipc.open_stream(value).read_all()
        first = table["sample_index"].to_numpy() == 0
        ends_s = table["generated_at"].cast(pa.int64()).to_numpy()[first] / 1e6
        self.tokens += int(np.sum(pa.compute.list_value_length(table["response_token_ids"]).to_numpy()))
        self.latencies_s += (now_s - ends_s).tolist()
        self.times_s += [now_s] * len(ends_s)

    def wait_for(self, groups, timeout_s, process=None, poll_s=0.2):
        wait_for(lambda: len(self.times_s) >= groups, timeout_s, process, poll_s)

    def steady_rate(self, skip_s=2.0):
        """Groups a second from ``skip_s`` after the first to the 95th percentile of the last."""
        times_s = np.array(self.times_s)
        begin_s, end_s = times_s[0] + skip_s, np.quantile(times_s, 0.95)
        return float(np.sum((times_s > begin_s) & (times_s <= end_s)) / (end_s - begin_s))

    def percentiles_ms(self, skip=0.1):
        """Median and 99th percentile of the latency, without the first groups."""
        steady = self.latencies_s[int(skip * len(self.latencies_s)) :]
        return {"p50_ms": 1e3 * float(np.quantile(steady, 0.5)), "p99_ms": 1e3 * float(np.quantile(steady, 0.99))}


class Bench:
    """A broker and a tiny model for all the runs of one benchmark."""

    def __enter__(self):
        self._closing = contextlib.ExitStack()
        self.directory = Path(self._closing.enter_context(tempfile.TemporaryDirectory(prefix="asyncflow-bench-")))
        self.broker = self._closing.enter_context(Broker(self.directory / "kafka"))
        self.model = build_tiny_model(self.directory / "model")
        self._runs = 0
        return self

    def __exit__(self, *error):
        self._closing.__exit__(*error)

    @contextlib.contextmanager
    def run(self, engines, **rollout):
        """A pipeline before which simulated engines of these numbers answer; it is warm when this returns."""
        started = [EngineProcess(**numbers) for numbers in engines]
        try:
            for engine in started:
                wait_for(engine.is_healthy, 30)
            with self.pipeline(str(self.model), [engine.url for engine in started], **rollout) as run:
                run.engines = started
                yield run
        finally:
            for engine in started:
                engine.end()

    @contextlib.contextmanager
    def pipeline(self, model, urls, fetch_wait_ms=5, **rollout):
        """A pipeline before engines that run already."""
        self._runs += 1
        name, directory = f"bench-{self._runs}", self.directory / f"bench-{self._runs}"
        directory.mkdir()
        tree = {
            "name": name,
            "kafka": {"bootstrap": self.broker.bootstrap, "partitions": PARTITIONS},
            "model": {"path": model},
            "rollout": {"workers": urls, "metrics_port": free_ports(1)[0], **rollout},
        }
        config = RunConfig.model_validate(tree)
        create_topics(config)
        with RolloutProcess(config, directory) as process, Watch(config, fetch_wait_ms) as watch:
            yield Run(config, process, watch, Topics(config), self.broker)


@dataclass
class Run:
    """One pipeline with all that it needs."""

    config: RunConfig
    process: RolloutProcess
    watch: Watch
    topics: Topics
    broker: Broker
    engines: list = field(default_factory=list)
    sent: int = 0

    def send(self, prompts):
        """Writes prompts; they wait until they are admitted."""
        for begin in range(0, len(prompts), 20_000):
            self.sent += len(self.topics.send_prompts(prompts[begin : begin + 20_000]))

    def warm(self):
        """Returns once the pipeline has opened its share."""
        wait_for(lambda: "share_opened" in self.process.log.read_text(), 60, self.process)
        time.sleep(1.0)

    def admit(self, groups=None, version=1):
        """Admits so many prompts in all, or every one."""
        each = EVERYTHING if groups is None else -(-groups // PARTITIONS)
        self.topics.admit(*[each] * PARTITIONS, version=version)

    def _metrics(self):
        return urlopen(f"http://127.0.0.1:{self.config.rollout.metrics_port}/metrics", timeout=5).read().decode()

    def metric_sums(self):
        """The pipeline's counters and the sums of its histograms, labels added up."""
        sums = defaultdict(float)
        for name, number in re.findall(r"^(asyncflow_\w+)(?:\{[^}]*\})? (\S+)$", self._metrics(), re.M):
            sums[name] += float(number)
        return sums

    def slot_shares(self):
        """What the slots did, as shares of the time so far."""
        pattern = r'^asyncflow_rollout_slot_seconds_total\{share="0",state="(\w+)"\} (\S+)$'
        found = re.findall(pattern, self._metrics(), re.M)
        seconds = {state: float(number) for state, number in found}
        return {state: second / sum(seconds.values()) for state, second in seconds.items()}

    def cpu_s(self):
        """Seconds of CPU so far, by process: of the pipeline, what it started, the broker and the engines."""
        pipeline = psutil.Process(self.process.process.pid)
        by_name = {"pipeline": _cpu_s(pipeline), "broker": _cpu_s(psutil.Process(self.broker.pid))}
        for child in pipeline.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                name = "prism" if "prism" in child.name() else "rewards"
                by_name[name] = by_name.get(name, 0.0) + _cpu_s(child)
        by_name["engines"] = sum(_cpu_s(psutil.Process(engine.process.pid)) for engine in self.engines)
        return by_name


def _cpu_s(process):
    times = process.cpu_times()
    return times.user + times.system


def sums(count):
    """Prompts of the tiny model's task, as record values."""
    return [
        json.dumps(
            {
                "messages": [{"role": "user", "content": f"{index % 90}+{index % 7}?"}],
                "reward": {"name": "last_number", "args": {"answer": str(index % 90 + index % 7)}},
            }
        ).encode()
        for index in range(count)
    ]
