"""Live feedback on a whole local stack: does the model become what its users like, and how soon?

    stack (broker, worker, pipelines, learner, gateway) ◄──HTTP── simulated users: short answers, then wordy ones
        ──► share of liked answers over time, gained, recovered after the change
        ──► from a click to the first answer by weights that were trained on it
    the same with judgements by chance ──► nothing may be learned

    make -s bench BENCH=live BENCH_ARGS="--answers 6000 --seeds 0"

Prints one JSON object, with code 1 if a figure misses its bar. The configuration is ``docs/feedback/chat.toml``, the
model SmolLM2-135M-Instruct. A run takes about 20 minutes on two cores.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

from pipelines.audit import audit
from pipelines.cli.logs import configure_logging
from pipelines.local.demo_model import demo_model
from pipelines.local.stack import Stack
from pipelines.log import RunReader, TopicReader, read_topic
from pipelines.simulation.chat import open_chat
from pipelines.simulation.population import Habits
from pipelines.simulation.run import Simulation, simulate
from schemas.config import load, validate
from schemas.feedback import Feedback
from schemas.ledger import surviving_steps
from schemas.outcomes import Outcome
from schemas.trajectories import decode
from tests.benchmarks import settings
from tests.benchmarks.stack import ROOT

CONFIG = ROOT / "docs" / "feedback" / "chat.toml"
GAINED, LEARNED_BY_CHANCE = 0.3, 0.1
"""Of the share of answers that users like; what counts as recovered is in ``pipelines/simulation/results.py``."""


def main():
    options = parse()
    configure_logging()  # standard output is for the figures
    with contextlib.redirect_stdout(sys.stderr):  # libraries print as they like
        runs = [one(options, seed, shuffled=False) for seed in options.seeds]
        controls = [one(options, seed, shuffled=True) for seed in options.controls]
    figures = {"runs": runs, "controls": controls, "passed": judge(runs, controls)}
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["passed"] else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=6000, help="of all users, the second half after the change")
    parser.add_argument("--users", type=int, default=48)
    parser.add_argument("--delay-s", type=float, default=0.5, help="mean time from an answer to its judgement")
    parser.add_argument("--window", type=int, default=128, help="answers over which the share of liked ones is taken")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("--controls", type=int, nargs="*", default=[0], help="seeds of runs with judgements by chance")
    parser.add_argument("--max-tokens", type=int, default=24)
    parser.add_argument("--first", default="short")
    parser.add_argument("--then", default="wordy")
    settings.add_option(parser)
    parser.add_argument("--runs", type=Path, help="where the runs are kept; by default they are not")
    return parser.parse_args()


def one(options, seed, *, shuffled):
    """One stack and one simulation; a control needs only the time before the change."""
    with tempfile.TemporaryDirectory(prefix="asyncflow-live-") as made:
        runs = options.runs or Path(made)
        config = configure(options, f"live-{seed}{'-chance' if shuffled else ''}", seed)
        with Stack(config, runs=runs, restarts=3) as stack:
            stack.start_serving()
            stack.start_rollout()
            stack.start_feedback()
            stack.start_gateway()
            figures = simulate(simulation(options, stack.config.gateway, seed, shuffled=shuffled))
            return figures | look(stack.config)


def configure(options, name, seed):
    """The page's configuration with the demo's model."""
    tree = load(CONFIG).model_dump(mode="json")
    tree |= {"name": name, "seed": seed, "model": {"path": str(demo_model())}}
    return validate(settings.put(tree, options.set), "of the benchmark")


def simulation(options, gateway, seed, *, shuffled):
    half = options.answers // 2
    return Simulation(
        gateway=f"http://{gateway.host}:{gateway.port}",
        application=open_chat(options.first, options.then, half),
        users=options.users,
        answers=half if shuffled else options.answers,
        change_at=half,
        habits=Habits(delay_s=options.delay_s, shuffled=shuffled),
        seed=seed,
        window=options.window,
        max_tokens=options.max_tokens,
    )


def look(config):
    """What the topics say of the run: the audit's verdict, and clicks that were answered."""
    with RunReader(config.kafka, config.name) as reader:
        log = reader.advance()
    verdict = audit(config.name, log)
    waits = list(Clicks.of(config, surviving_steps(log.ledger)).waits_s())
    return {
        "audit": {"ok": verdict.ok, "faults": verdict.faults, "steps": verdict.steps, "trained": verdict.trained},
        "clicks_answered": len(waits),
        "click_to_answer_s": statistics.median(waits) if waits else None,
    }


@dataclass
class Clicks:
    """Judgements that were trained, and when answers by the weights came."""

    clicked_s: dict
    """When the broker took it, by feedback place."""
    trained_as: dict
    """The groups that it is part of, by feedback place."""
    version_of: dict
    """The version that a group's step made."""
    answers: list
    """Version and moment, by version: when the first answer by it, or by a later one, was whole."""

    @classmethod
    def of(cls, config, line):
        topics = config.topics
        clicked, reader = {}, TopicReader(config.kafka, topics.feedback)
        for record in reader.read_on():
            Feedback.decode(record.value)
            clicked[record.partition, record.offset] = record.timestamp / 1000
        reader.close()
        outcomes = read_topic(config.kafka, topics.outcomes, Outcome.decode)
        used = {
            fate.at: outcome.contributions
            for outcome in outcomes
            for fate in outcome.feedback
            if fate.fate in ("used", "corrected")
        }
        version_of = {trained.group: step.version for step in line for trained in step.trained}
        return cls(clicked, used, version_of, first_answers(config))

    def waits_s(self):
        """From each click to the first answer by weights that were trained on it; those without one are left out."""
        versions = [version for version, _ in self.answers]
        for place, groups in self.trained_as.items():
            trained = [self.version_of[group] for group in groups if group in self.version_of]
            found = bisect_left(versions, min(trained)) if trained else len(versions)
            if found < len(versions):
                yield self.answers[found][1] - self.clicked_s[place]


def first_answers(config):
    """For each version the first moment at which an answer by it, or by a later one, was whole."""
    reader, moments = TopicReader(config.kafka, config.topics.pending), {}
    for record in reader.read_on():
        for samples in decode(record.value, dict(record.headers)):
            for sample in samples:
                at_s = sample.generated_at.timestamp()
                version = sample.weight_version_min
                moments[version] = min(at_s, moments.get(version, at_s))
    reader.close()
    answers, earliest = [], float("inf")
    for version in sorted(moments, reverse=True):
        earliest = min(earliest, moments[version])
        answers.append((version, earliest))
    return answers[::-1]


def judge(runs, controls):
    """Whether every run adapts, and no control does."""
    adapted = all(run["gained"] >= GAINED and run["recovery"] is not None and run["audit"]["ok"] for run in runs)
    return adapted and all(abs(control["gained"]) <= LEARNED_BY_CHANCE for control in controls)


if __name__ == "__main__":
    raise SystemExit(main())
