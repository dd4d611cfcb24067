"""The feedback pipeline under traffic worse than real: is every judgement accounted for once, and how fast?

    10^5 rollouts, 10^5 judgements (20 % twice, 10 % late, 5 % early, 5 % unknown, 2 % retractions), in random order
        ──► a pipeline that nobody disturbs          ──► fates, ends, events/s, size of the state
        ──► one that is killed (SIGKILL) three times ──► the same numbers
        ──► no pipeline: the log, and what is decided  ──► the same fate for every single judgement
    a flood of 10^4 judgements a second by one user  ──► how long another user's judgement takes, before and meanwhile

    make -s bench BENCH=feedback BENCH_ARGS="--events 10000"

Prints one JSON object, with code 1 if anything was lost, doubled or different. A real broker, Prism and the tiny model;
rollouts and judgements are those of ``tests/support/feedback_traffic.py``. The topics are filled first, and all that is
waited for is over when a pipeline starts, so that the rate is that of the pipeline and of nothing else.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipelines.local.broker import Broker
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from pipelines.log import TopicReader
from schemas.config import KafkaConfig, ModelConfig, RunConfig
from schemas.feedback import Feedback
from schemas.identity import EXCHANGES, GroupId
from schemas.joining import FeedbackConfig
from schemas.outcomes import Outcome
from tests.pipeline.rollout_process import JoinProcess, wait_for
from tests.support.feedback_traffic import Sender, account, draw, foresee

KILLS = 3
LEAST_HELD_S, HELD_A_EVENT_S = 60.0, 0.0015
"""Longer than it takes to send all rollouts and judgements: what is decided must not depend on how fast that is."""
FLOOD_A_S = 10_000
FLOOD_S = 10
MOST_DELAYED_S = 2.0
TIMEOUT_S = 1800


def main():
    options = parse()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns on the standard output
    with tempfile.TemporaryDirectory(prefix="asyncflow-feedback-") as made:
        directory = Path(made)
        model = build_tiny_model(directory / "model")
        with Broker(directory / "kafka") as broker:
            bench = Bench(broker.bootstrap, model, directory, options.events)
            figures = bench.measure()
            figures["flood"] = bench.flood()
    figures["passed"] = judge(figures)
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000, help="rollouts, and as many judgements")
    return parser.parse_args()


class Bench:
    """Runs on one broker."""

    def __init__(self, bootstrap, model, directory, events):
        self._bootstrap, self._model, self._directory, self._events = bootstrap, model, directory, events

    def _config(self, name, **feedback):
        config = RunConfig(
            name=name,
            kafka=KafkaConfig(bootstrap=self._bootstrap),
            model=ModelConfig(path=str(self._model)),
            feedback=FeedbackConfig(**feedback),
        )
        create_topics(config)
        return config

    def measure(self):
        """Both pipelines, each over a log of its own with the same traffic."""
        held_s = max(LEAST_HELD_S, HELD_A_EVENT_S * self._events)
        held = {"settle_s": held_s, "unknown_after_s": held_s, "wait_s": 3 * held_s, "correction_s": 2 * held_s}
        configs = [self._config(name, user_rate_per_s=1e6, **held) for name in ("undisturbed", "killed")]
        traffics = [draw(self._events, self._events, run=config.name) for config in configs]
        sent_s = [self._send(config, traffic) for config, traffic in zip(configs, traffics, strict=True)]
        assert max(sent_s) < held_s, (
            f"sending took {max(sent_s):.0f} s, longer than the {held_s:.0f} s that are held back"
        )
        sent = time.monotonic()
        time.sleep(held_s + 1)
        for config, traffic in zip(configs, traffics, strict=True):
            Sender(config).send(traffic.late)
        time.sleep(max(0.0, sent + 3 * held_s + 1 - time.monotonic()))
        undisturbed = self._run(configs[0], traffics[0], kills=0)
        killed = self._run(configs[1], traffics[1], kills=KILLS)
        return {"events": self._events, "seconds_sent": max(sent_s), "undisturbed": undisturbed, "killed": killed}

    def _send(self, config, traffic):
        started, sender = time.monotonic(), Sender(config)
        sender.send(traffic.early)
        sender.send(traffic.mixed)
        return time.monotonic() - started

    def _run(self, config, traffic, kills):
        """Waits until everything has an end, killing the pipeline as its work goes on."""
        started, judgements, progress = time.monotonic(), len(traffic.judgements), Progress(config)
        marks = [judgements * (each + 1) // (kills + 2) for each in range(kills)]
        while True:
            with JoinProcess(config, self._directory) as running:
                wait_for(lambda: progress.is_at(marks, judgements, self._events), TIMEOUT_S, running, poll_s=1)
                if not marks:
                    process = psutil.Process(running.process.pid)
                    memory_bytes, cpu_s = process.memory_info().rss, seconds_of(process)
                    running.drain()
                    break
                marks.pop(0)
                running.kill()
        seconds, found = time.monotonic() - started, account(config)
        fates, kinds = foresee(config)
        return {
            **found.figures,
            "once": found.once() and len(found.judged) == len(traffic.judgements),
            "other_than_foreseen": len(set(fates.items()) ^ set(found.told.items())),
            "kinds_as_foreseen": kinds == found.kinds,
            "seconds": seconds,
            "events_a_second": 2 * self._events / seconds,
            "memory_bytes": memory_bytes,
            "cpu_seconds_of_the_last_start": cpu_s,
            "log": summary_of(running.log),
        }

    def flood(self):
        """Seconds from a judgement to its outcome, alone and beside a user who sends ten thousand a second."""
        config = self._config("flood", settle_s=0.0, user_rate_per_s=5.0)
        with JoinProcess(config, self._directory) as running, Quiet(config) as quiet:
            quiet.seconds(0)  # the pipeline is up
            alone, beside = [quiet.seconds(number) for number in range(1, 11)], []
            cpu_s = seconds_of(psutil.Process(running.process.pid))
            with ThreadPoolExecutor(1) as pool:
                flooded = pool.submit(send_flood, config)
                while not flooded.done() or beside[-1] > 2 * max(alone):  # as long as what was sent is not read
                    beside.append(quiet.seconds(11 + len(beside)))
            sent, sent_a_second = flooded.result()
            cpu_s = seconds_of(psutil.Process(running.process.pid)) - cpu_s
        return {
            "sent": sent,
            "sent_a_second": sent_a_second,
            "seconds_alone": statistics.median(alone),
            "seconds_beside": statistics.median(beside),
            "seconds_beside_worst": max(beside),
            "cpu_microseconds_a_record": 1e6 * cpu_s / sent,
        }


class Progress:
    """How far a pipeline is, by its outcomes; each is read once."""

    def __init__(self, config):
        self._reader = TopicReader(config.kafka, config.topics.outcomes)
        self._judged = self._ended = 0

    def is_at(self, marks, judgements, rollouts):
        """Whether it is at the first mark, or if there is none left at the end."""
        outcomes = [Outcome.decode(record.value) for record in self._reader.read_on()]
        self._judged += sum(len(outcome.feedback) for outcome in outcomes)
        self._ended += sum(outcome.kind in ("joined", "expired") for outcome in outcomes)
        if marks:
            return self._judged >= marks[0]
        return self._judged >= judgements and self._ended >= rollouts


class Quiet:
    """Users who judge once, and wait for what comes of it."""

    def __init__(self, config):
        self._config, self._sender = config, Sender(config)
        self._outcomes = KafkaConsumer(**config.kafka.consumer_options())
        partition = TopicPartition(config.topics.outcomes, 0)
        self._outcomes.assign([partition])
        self._outcomes.seek_to_end(partition)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._outcomes.close()

    def seconds(self, number):
        """From a judgement that is acknowledged to its outcome that is committed."""
        group = GroupId(EXCHANGES, number)
        self._sender.send([group])
        given = Feedback(
            feedback_id=f"one-{number}", rollout_id=f"{self._config.name}/{group}/0", kind="thumb", value=1.0,
            user=f"quiet-{number}",
        )  # fmt: skip
        self._sender.send([given])
        started = time.monotonic()
        wait_for(lambda: self._has(group.key()), 120, poll_s=0)
        return time.monotonic() - started

    def _has(self, key):
        polled = self._outcomes.poll(timeout_ms=20)
        return any(record.key == key for records in polled.values() for record in records)


def send_flood(config):
    """One user's judgements as fast as they can be told; gives how many there were, and how many a second."""
    producer = KafkaProducer(**config.kafka.producer_options())
    rollout = f"{config.name}/{GroupId(EXCHANGES, 0)}/0"
    given = [
        Feedback(feedback_id=f"x-{number}", rollout_id=rollout, kind="thumb", value=1.0, user="loud").encode()
        for number in range(1000)
    ]
    started, sent = time.monotonic(), 0
    while time.monotonic() - started < FLOOD_S:
        for value in given:
            producer.send(config.topics.feedback, value)
        sent += len(given)
        time.sleep(max(0.0, started + sent / FLOOD_A_S - time.monotonic()))
    producer.flush()
    return sent, sent / (time.monotonic() - started)


def seconds_of(process):
    """Processor time of a process, without its children."""
    return sum(process.cpu_times()[:2])


def summary_of(log):
    """Errors in a log, so that a run that only seems right is seen."""
    return [line[:300] for line in log.read_text(errors="replace").splitlines() if "Traceback" in line][:3]


def judge(figures):
    """Whether nothing was lost or doubled, dying changed nothing, and nobody was delayed by another's flood."""
    undisturbed, killed = figures["undisturbed"], figures["killed"]
    same = all(undisturbed[name] == killed[name] for name in ("fates", "kinds"))
    foreseen = all(not each["other_than_foreseen"] and each["kinds_as_foreseen"] for each in (undisturbed, killed))
    in_time = figures["flood"]["seconds_beside_worst"] <= MOST_DELAYED_S
    return same and foreseen and undisturbed["once"] and killed["once"] and in_time


if __name__ == "__main__":
    raise SystemExit(main())
