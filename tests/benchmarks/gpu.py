"""The whole loop on one CUDA GPU: is the engine as fast as alone, and what does asynchrony buy?

    throughput   prompts ─► pipeline ─► worker ─► trajectories ─► learner, all on one GPU     tokens/s
                 prompts ─► LLM.generate, alone on it                                        tokens/s
    loop         the wall clock to the same held-out reward with learner.max_staleness 1, 2, 4 over that with 0

    python -m tests.benchmarks.gpu --part throughput --out DIR

Prints one JSON object, with code 1 if a figure misses its bar. The configurations lie in
``docs/benchmarks/gpu/``, results of a run too. ``--out`` also receives, for each run, its resolved
configuration, its logs, ``metrics.jsonl`` (the learner's steps) and ``held_out.jsonl``.

``throughput`` measures the pipeline twice. In ``idle`` rounds the learner is loaded, with its optimizer, but all
samples of a group have the same reward, so that it has nothing to train; in ``training`` rounds it trains on
everything that comes, and the worker takes every version while it generates.
"""

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import tomllib
from contextlib import contextmanager
from pathlib import Path

from pipelines.drill.rewards import SHARE
from pipelines.evaluation.measure import Measure
from pipelines.evaluation.prompts import HeldOut
from pipelines.local.demo_model import demo_model
from pipelines.local.stack import ROLLOUT, WORKER, Stack
from pipelines.log import RunReader, read_topic
from pipelines.submit import submit
from schemas.config import validate
from schemas.ledger import decode_entry, surviving_steps
from schemas.prompts import Message, Prompt, RewardSpec, Sampling
from tests.benchmarks import counting, settings
from tests.benchmarks.engine_ratio import TOPICS, offline, offline_request
from tests.benchmarks.stack import ROOT, Watch, begin
from tests.benchmarks.turns import add_option, wait_for_turn
from tests.pipeline.rollout_process import wait_for

CONFIGS = ROOT / "docs" / "benchmarks" / "gpu"
TOKENS = 256
WAVE_GROUPS = 128
"""1,024 sequences."""
RATIO = 0.9
"""Tokens a second through the pipeline over those of the engine alone, at least."""
GAP = 0.2
"""A rate counts only if the tokens are the model's: an engine that answers nonsense is no slower."""
BOUNDS = (0, 1, 2, 4)
LEVELS = (0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
"""Mean held-out rewards; greedy answers begin at 0.53. Runs of ``loop`` are compared at the highest that all reach,
and each ends at the last."""
TIMEOUT_S = 300


def main():
    options = parse()
    begin(options.out)
    figures, reached = {"gpu": gpu_name()}, True
    for part in options.part:
        figures[part] = PARTS[part](options)
        reached = reached and figures[part]["reached"]
        (options.out / f"{part}.json").write_text(json.dumps(figures[part], indent=1) + "\n")
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    return 0 if reached else 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-benchmark"))
    parser.add_argument("--model", type=Path, help="by default SmolLM2-135M-Instruct")
    parser.add_argument("--waves", type=int, default=3, help="of 1,024 sequences in each round of throughput")
    parser.add_argument("--rounds", type=int, default=2, help="of each kind in throughput")
    parser.add_argument("--bounds", type=int, nargs="+", default=list(BOUNDS), help="values of max_staleness in loop")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds after which a run of loop is given up")
    add_option(parser)
    settings.add_option(parser)
    return parser.parse_args()


def say(what, **figures):
    """A line on standard error: what is known so far."""
    sys.stderr.write(json.dumps({"at": round(time.monotonic(), 1), what: figures}) + "\n")


def gpu_name():
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


# ---- throughput ---------------------------------------------------------------------------------------


def throughput(options):
    """Tokens a second of the engine alone and through the pipeline beside a learner, in turn, all of them loaded."""
    config = configuration(options, "throughput")
    groups = options.waves * WAVE_GROUPS
    asked = options.out / "offline.json"
    alike = [prompt.encode() for prompt in stories(groups, learns=False)]
    asked.write_text(json.dumps(offline_request(config, alike, max_tokens=TOKENS, min_tokens=TOKENS)))
    with (
        offline(asked, options.out / "offline.log") as alone,
        serving(options, config) as stack,
    ):
        alone.wait()
        wait_for_turn(options.after)
        rates, gap = rounds(options, alone, stack, groups)
    figures = {"sequences": WAVE_GROUPS * 8, "tokens_per_sequence": TOKENS, "groups_per_round": groups}
    median = {kind: statistics.median(found) for kind, found in rates.items()}
    ratios = {kind: median[kind] / median["offline"] for kind in ("idle", "training")}
    reached = min(ratios.values()) >= RATIO and gap <= GAP
    figures |= {"tokens_s": rates, "over_offline": ratios, "bar": f">= {RATIO}", "logprob_gap_mean": gap}
    return {**figures, "reached": reached}


def rounds(options, alone, stack, groups):
    """Rates of all rounds, one kind after the other, and the largest gap."""
    rates = {"offline": [], "idle": [], "training": []}
    with Watch(stack.config) as watch:
        measure(stack, watch, stories(WAVE_GROUPS // 4, learns=False))  # warms up
        for _ in range(options.rounds):
            rates["offline"].append(alone.round())
            for kind in ("idle", "training"):
                rates[kind].append(measure(stack, watch, stories(groups, learns=kind == "training")))
                say("throughput", **rates)
    return rates, largest_gap(stack)


def largest_gap(stack):
    """Of all steps, the largest mean difference between the engine's logprobs and the learner's, in nats.

    Waits for the first step: it takes longer than a round.
    """
    with RunReader(stack.config.kafka, stack.config.name) as reader:

        def gaps():
            line = surviving_steps(reader.advance().ledger)
            return [entry.metrics["logprob_gap_mean"] for entry in line if entry.trained]

        return max(wait_for(lambda: ticked(stack) and gaps(), TIMEOUT_S))


def stories(count, *, learns):
    """Prompts answered by exactly ``TOKENS`` tokens; unless ``learns``, all samples of a group score the same."""
    reward = RewardSpec(name=SHARE, args={"letter": "e" if learns else "\x00"})
    asked = [f"Tell me a long story, number {index}, about {TOPICS[index % len(TOPICS)]}." for index in range(count)]
    sampling = Sampling(max_tokens=TOKENS, min_tokens=TOKENS)
    return [Prompt(messages=(Message(role="user", content=text),), reward=reward, sampling=sampling) for text in asked]


def measure(stack, watch, prompts):
    """Tokens a second from the writing of the prompts to the last readable trajectory."""
    groups, tokens, started = len(watch.times_s) + len(prompts), watch.tokens, time.monotonic()
    submit(stack.config, [prompt.encode() for prompt in prompts])
    wait_for(lambda: ticked(stack) and len(watch.times_s) >= groups, TIMEOUT_S, poll_s=0.02)
    return (watch.tokens - tokens) / (time.monotonic() - started)


# ---- the loop -----------------------------------------------------------------------------------------


def loop(options):
    """The wall clock to the same held-out reward, for each bound of the staleness."""
    runs = {}
    for bound in options.bounds:
        runs[str(bound)] = one_loop(options, bound)
        (options.out / "loop.partial.json").write_text(json.dumps(runs, indent=1) + "\n")
        say("loop", bound=bound, **runs[str(bound)])
    reward = min(max(run["held_out"]) for run in runs.values())
    reward = max((level for level in LEVELS if level <= reward), default=None)
    seconds = {bound: seconds_to(reward, run) for bound, run in runs.items()} if reward else {}
    ratio = {bound: second / seconds["0"] for bound, second in seconds.items() if "0" in seconds}
    reached = bool(ratio) and all(second < 1 for bound, second in ratio.items() if bound != "0")
    return {"held_out_reward": reward, "seconds": seconds, "over_synchronous": ratio, "runs": runs, "reached": reached}


def seconds_to(reward, run):
    """From the first prompt to the end of the first evaluation that found this reward."""
    return next(at_s for at_s, found in zip(run["held_out_at_s"], run["held_out"], strict=True) if found >= reward)


def one_loop(options, bound):
    config = configuration(options, "loop", {"learner": {"max_staleness": bound}}, suffix=f"-{bound}")
    train, held_out = counting.prompts(config.seed)
    wanted = 4 * config.learner.steps * config.learner.groups_per_step
    lines = [train[index % len(train)].encode() for index in range(wanted)]
    with serving(options, config) as stack:
        wait_for_turn(options.after)
        asked = Measure(stack.config, HeldOut(held_out))
        before = reward_of(asked)
        started = time.monotonic()
        submit(stack.config, lines)
        evals = Evaluations(asked, started, stack.directory / "held_out.jsonl")
        evals.start()
        while not evals.done.is_set() and time.monotonic() - started < options.limit:
            ticked(stack)
            time.sleep(0.1)
        evals.stop()
        ledger = read_topic(stack.config.kafka, stack.config.topics.ledger, decode_entry)
        return summary(surviving_steps(ledger), evals, before)


def reward_of(held_out):
    """The mean reward of greedy answers by the weights that are served now."""
    return held_out.of(1)[0].value


class Evaluations(threading.Thread):
    """Asks for greedy answers to the held-out prompts again and again, until their reward reaches the target.

    Each result is a line of ``file`` at once.
    """

    def __init__(self, held_out, started, file):
        super().__init__(daemon=True)
        self._held_out, self._begun, self._file = held_out, started, file
        self._stopping, self.done = threading.Event(), threading.Event()
        self.results = []

    def run(self):
        while not self._stopping.wait(0.5):
            begun_s = time.monotonic() - self._begun
            reward = reward_of(self._held_out)
            self.results.append({"begun_s": begun_s, "ended_s": time.monotonic() - self._begun, "reward": reward})
            with self._file.open("a") as file:
                file.write(json.dumps(self.results[-1]) + "\n")
            if reward >= LEVELS[-1]:
                self.done.set()
                return

    def stop(self):
        self._stopping.set()
        self.join(60)


def summary(line, evals, before):
    steps = [entry.metrics for entry in line]

    def mean(name, used=steps[1:]):
        found = [figures[name] for figures in used if name in figures]
        return round(statistics.fmean(found), 4) if found else None

    names = ("seconds_step", "seconds_wait", "seconds_train", "seconds_publish", "staleness_mean",
             "response_tokens_mean", "logprob_gap_mean", "clip_fraction")  # fmt: skip
    return {
        "steps": len(steps),
        "held_out_before": before,
        "held_out": [round(result["reward"], 3) for result in evals.results],
        "held_out_at_s": [round(result["ended_s"], 1) for result in evals.results],
        "reward_mean": [round(figures.get("reward_mean", 0.0), 3) for figures in steps],
        "mean": {name: mean(name) for name in names},
    }


# ---- both ---------------------------------------------------------------------------------------------


def configuration(options, name, over=None, suffix=""):
    """``docs/benchmarks/gpu/<name>.toml`` with the model's path filled in."""
    tree = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
    tree["name"] += suffix
    tree["model"]["path"] = str(options.model or demo_model())
    tree["weights"]["root"] += suffix
    for section, keys in (over or {}).items():
        tree[section] |= keys
    return validate(settings.put(tree, options.set), f"{name}.toml")


@contextmanager
def serving(options, config):
    """The whole stack of a run, once its pipeline has opened its share; what it leaves is copied to ``--out``."""
    shutil.rmtree(config.weights.root, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="asyncflow-gpu-") as runs:
        try:
            with Stack(config, runs=Path(runs)) as stack:
                logs = stack.directory / "logs"
                started = (logs / f"{WORKER}.log").exists, (logs / f"{ROLLOUT}.log").exists
                # The pipeline waits for a worker: here it starts beside it, which saves the time of one start.
                stack.start_serving(lambda: started[0]() and not started[1]() and stack.start_rollout())
                wait_for(lambda: ticked(stack) and "share_opened" in (logs / f"{ROLLOUT}.log").read_text(), TIMEOUT_S)
                yield stack
        finally:
            keep(Path(runs) / config.name, options.out / config.name)
            shutil.rmtree(config.weights.root, ignore_errors=True)


def ticked(stack):
    """Raises if a process of the stack has died."""
    stack.supervisor.tick()
    return True


def keep(directory, target):
    """Configuration, logs and what was measured; not the log itself, nor weights."""
    target.mkdir(parents=True, exist_ok=True)
    for file in (*directory.glob("*.toml"), *directory.glob("*.jsonl"), *directory.glob("logs/*.log")):
        shutil.copy(file, target)


PARTS = {"throughput": throughput, "loop": loop}


if __name__ == "__main__":
    sys.exit(main())
