"""Workers that die, come, freeze and slow down in the middle of a run: is a group lost, are the others disturbed?

    Scene: broker ─► pipeline (a process, on Prism) ─► simulated engines (processes, full all the time)
    Watch: trajectories ─► who answered what, and when ─► rates of the workers that nothing happened to

Every engine computes so many requests at once, each for a mean of 0.5 s, and the pipeline holds more
than all of them can compute. ``rate_ratio`` is the mean rate of the workers that nothing happened to,
from the event on, over that of the same run before the first event.
"""

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipelines.local.broker import Broker
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas import trajectories
from schemas.config import KafkaConfig, ModelConfig, RolloutConfig, RunConfig
from schemas.workers import WorkerEntry
from tests.benchmarks.stack import EngineProcess
from tests.pipeline.rollout_process import RolloutProcess, Topics, wait_for

ROOT = Path(__file__).parents[2]
SAMPLES = 2
TOKENS = 16
"""In the mean of a sample; lengths are uniform, so the longest of two is 4/3 of it in the mean."""
TOKEN_S = 0.5 / (TOKENS * 4 / 3)
FROZEN_AFTER_S = 1.5
_ANNOUNCE_S = 1.0


class Engine(EngineProcess):
    """A simulated engine that is announced while it is alive and wanted."""

    def __init__(self, requests_at_once):
        super().__init__(token_s=TOKEN_S, fixed_tokens=0, mean_tokens=TOKENS, slots=SAMPLES * requests_at_once)
        self.announced = False

    def signal(self, number):
        self.process.send_signal(number)


@dataclass(frozen=True)
class Window:
    """Some time, in Unix seconds, and the engines that are looked at in it."""

    engines: list
    begin_s: float
    end_s: float


class Registry:
    """Announces engines, as workers do themselves, and says that one leaves."""

    def __init__(self, config):
        self._topic = config.topics.workers
        self._producer = KafkaProducer(**config.kafka.producer_options())

    def say(self, engine, state="up"):
        entry = WorkerEntry(url=engine.url, state=state, version=1, max_num_seqs=64)
        self._producer.send(self._topic, entry.encode(), engine.url.encode()).get(10)


class Scene:
    """A run with full engines. A thread writes prompts as they are used up, announces and watches."""

    def __init__(self, bootstrap, directory, *, engines, requests_at_once, in_flight):
        model = ModelConfig(path=str(build_tiny_model(directory / "model")))
        rollout = RolloutConfig(workers=(), group_size=SAMPLES, max_in_flight=in_flight, frozen_after_s=FROZEN_AFTER_S)
        name = f"workers-{os.getpid()}-{time.time_ns()}"
        self.config = RunConfig(name=name, kafka=KafkaConfig(bootstrap=bootstrap), model=model, rollout=rollout)
        create_topics(self.config)
        self.topics = Topics(self.config)
        self.topics.admit(10**9, 10**9)
        self.seen = []
        """Of every group that came out: its id, who answered, when (Unix time)."""
        self.sent = []
        self._backlog, self._draw = 2 * in_flight, random.Random(0)
        self._ending, self._stopped = threading.Event(), threading.Event()
        self.registry = Registry(self.config)
        self.engines = [Engine(requests_at_once) for _ in range(engines)]
        self._process = RolloutProcess(self.config, directory)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        for engine in self.engines:
            wait_for(engine.is_healthy, 30)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join()
        self._process.__exit__()
        for engine in self.engines:
            engine.end()

    def _run(self):
        consumer = KafkaConsumer(**self.config.kafka.consumer_options())
        consumer.assign([TopicPartition(self.config.topics.trajectories, partition) for partition in range(2)])
        consumer.seek_to_beginning(*consumer.assignment())
        announced_s = 0.0
        while not self._stopped.is_set():
            for records in consumer.poll(50).values():
                self._note(records)
            if not self._ending.is_set() and len(self.sent) - len(self.seen) < self._backlog:
                self.sent += self.topics.send_prompts([self._prompt() for _ in range(self._backlog // 2)])
            if time.monotonic() - announced_s > _ANNOUNCE_S:
                announced_s = time.monotonic()
                for engine in self.engines:
                    if engine.announced:
                        self.registry.say(engine)
        consumer.close()

    def _note(self, records):
        for record in records:
            for samples in trajectories.decode(record.value, dict(record.headers)):
                first = samples[0]
                self.seen.append((tuple(first.group), first.worker, first.generated_at.timestamp()))

    def _prompt(self):
        reward = {"name": "last_number", "args": {"answer": "5"}}
        return json.dumps({"token_ids": self._draw.choices(range(6, 16), k=4), "reward": reward}).encode()

    def announce(self, *engines):
        for engine in engines:
            engine.announced = True
            self.registry.say(engine)

    def wait_for_answers_of(self, engine, since_s=0.0):
        """Returns how many seconds after ``since_s`` (Unix time) the engine's first answer came."""

        def times():
            return [at_s for _, url, at_s in list(self.seen) if url == engine.url and at_s > since_s]

        wait_for(times, 60, self._process)
        return min(times()) - since_s

    def watch(self, engines, window_s):
        """Lets the time pass that begins now; what they did in it is known once all has been read."""
        begin_s = time.time()
        time.sleep(window_s)
        return Window(engines, begin_s, time.time())

    def rate(self, window):
        """Groups a second of one of the window's engines, in the mean."""
        urls = {engine.url for engine in window.engines}
        counted = sum(url in urls and window.begin_s <= at_s < window.end_s for _, url, at_s in self.seen)
        return counted / (window.end_s - window.begin_s) / len(urls)

    def finish(self):
        """Waits for every prompt; returns the numbers of those lost and of those that came out more than once."""
        self._ending.set()
        time.sleep(0.1)
        wait_for(lambda: {group for group, _, _ in list(self.seen)} >= set(self.sent), 60, self._process)
        time.sleep(0.5)
        outcomes = self.topics.outcomes()
        return {"lost": len(set(self.sent) - set(outcomes)), "doubled": sum(n > 1 for n in outcomes.values())}


def play(scene, window_s):
    """The four events one after the other; returns the figures of each once every prompt is answered."""
    killed, frozen, slowed, quiet, added = scene.engines
    crew = [killed, frozen, slowed, quiet]
    scene.announce(*crew)
    for engine in crew:
        scene.wait_for_answers_of(engine)
    time.sleep(1.0)
    normal = scene.watch(crew, window_s)

    killed.announced = False
    killed.signal(signal.SIGKILL)
    after_kill = scene.watch([frozen, slowed, quiet], window_s)

    scene.announce(added)
    after_add = scene.watch([frozen, slowed, quiet], window_s)
    came_after_s = scene.wait_for_answers_of(added, after_add.begin_s)

    frozen.signal(signal.SIGSTOP)
    while_frozen = scene.watch([slowed, quiet, added], window_s)
    frozen.signal(signal.SIGCONT)
    back_after_s = scene.wait_for_answers_of(frozen, while_frozen.end_s)

    slowed.set(token_s=5 * TOKEN_S)
    while_slow = scene.watch([frozen, quiet, added], window_s)
    slowed.set(token_s=TOKEN_S)

    accounts, normal_rate = scene.finish(), scene.rate(normal)

    def ratio(window):
        return {"rate_ratio": round(scene.rate(window) / normal_rate, 3)}

    return {
        "killed": ratio(after_kill),
        "added": {**ratio(after_add), "first_answer_s": round(came_after_s, 3)},
        "frozen": {**ratio(while_frozen), "back_after_s": round(back_after_s, 3)},
        "slowed": ratio(while_slow),
        **accounts,
        "groups": len(scene.sent),
        "groups_s_per_worker": round(normal_rate, 1),
    }


def measure(*, window_s=5.0, requests_at_once=24, in_flight=160):
    """The four events in one run of four engines and a fifth that is added.

    Returns:
        For each event ``rate_ratio`` and what came of it; ``lost`` and ``doubled`` are those of the whole run.
    """
    with tempfile.TemporaryDirectory() as directory, Broker(Path(directory) / "kafka") as broker:
        sizes = {"engines": 5, "requests_at_once": requests_at_once, "in_flight": in_flight}
        with Scene(broker.bootstrap, Path(directory), **sizes) as scene:
            return play(scene, window_s)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(), indent=1) + "\n")
