"""vLLM through the whole pipeline beside vLLM's own offline generation: same prompts, sampling, engine settings.

    prompts ─► pipeline ─► vLLM worker (a process) ─► trajectories that a learner could read     tokens/s
    prompts ─► LLM.generate (a process)                                                          tokens/s

Each side runs alone, offline before and after the pipeline, so that a machine that becomes slower or faster
shows as a spread and not as a ratio. Both have all prompts from the start, and both are timed to the last answer.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time

from pipelines.local.ports import free_ports
from pipelines.local.topics import create_topics
from schemas.config import RunConfig
from schemas.prompts import Prompt
from tests.benchmarks.stack import ROOT
from tests.pipeline.rollout_process import wait_for
from tests.support.weights import announce, probe_of, state_of, write_version
from tests.support.worker import WorkerProcess
from transforms.generation.tokenizer import Tokenizer

TOPICS = ("a lighthouse", "two brothers", "a lost dog", "the first train", "a baker", "rain in June", "an old map")
_ROUNDS = 2
_START_S = 300


def story_prompts(count, tokens):
    """Record values of prompts whose answers are as long as they may be."""
    asked = [f"Tell me a long story, number {index}, about {TOPICS[index % len(TOPICS)]}." for index in range(count)]
    return [
        json.dumps(
            {
                "messages": [{"role": "user", "content": text}],
                "reward": {"name": "last_number", "args": {"answer": "1"}},
                "sampling": {"max_tokens": tokens},
            }
        ).encode()
        for text in asked
    ]


def measure(bench, model, *, groups, tokens, max_num_seqs=64, in_flight_groups=16, worker=None, dtype="auto"):
    """Tokens a second of both, and their ratio.

    Args:
        bench: whose broker is used.
        model: a Hugging Face directory.
        groups: how many prompts, each answered 8 times.
        tokens: longest answer.
        max_num_seqs: sequences that the engine computes at once, on both sides.
        in_flight_groups: how many groups the pipeline asks for at once.
        worker: further settings of the worker's section.
        dtype: of the engine, on both sides.
    """
    settings = {"port": free_ports(1)[0], "max_num_seqs": max_num_seqs, **(worker or {})}
    config = _config(bench, model, dtype, settings)
    prompts = story_prompts(groups * _ROUNDS, tokens)
    arguments = bench.directory / "offline.json"
    arguments.write_text(json.dumps(offline_request(config, prompts[:groups], max_tokens=tokens)))
    with offline(arguments, bench.directory / "offline.log") as alone:
        alone.wait()
        before = alone.round()
        through = _pipeline(bench, config, prompts, in_flight_groups)
        rates = [before, alone.round()]
    return {
        "pipeline_tokens_s": through["tokens_s"],
        "offline_tokens_s": rates,
        "slots": through["slots"],
        "groups": groups,
        "max_tokens": tokens,
        "dtype": config.model.dtype,
        "ratio": statistics.median(through["tokens_s"]) / statistics.median(rates),
    }


def _config(bench, model, dtype, worker):
    from trainers.precision import fastest_dtype

    return RunConfig.model_validate(
        {
            "name": "ratio",
            "kafka": {"bootstrap": bench.broker.bootstrap},
            "model": {"path": model, "dtype": fastest_dtype() if dtype == "auto" else dtype},
            "weights": {"root": str(bench.directory / "weights")},
            "worker": worker,
        }
    )


def offline_request(config, prompts, **sampling):
    """The pipeline's requests, for ``tests/benchmarks/offline.py``.

    Args:
        config: of the run; the worker's section says what the engine is like.
        prompts: record values, each answered 8 times.
        sampling: over temperature 1 and the tokens' logprobs.
    """
    tokenizer = Tokenizer.load(config.model.path)
    return {
        "config": config.model_dump(mode="json"),
        "prompts": [tokenizer.encode(Prompt.decode(prompt)) for prompt in prompts],
        "sampling": {"n": 8, "temperature": 1.0, "logprobs": 0, **sampling},
        "rounds": None,
    }


@contextlib.contextmanager
def offline(arguments, log):
    """``LLM.generate`` in a process that waits to be asked."""
    command = [sys.executable, "-m", "tests.benchmarks.offline", str(arguments)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield Offline(process, log)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # vLLM's engine processes outlive the one that started them
            process.wait()


class Offline:
    """The engine alone."""

    def __init__(self, process, log):
        self._process, self._log, self._asked = process, log, 0

    def wait(self):
        """Returns once it has done what was asked for; the last line that it said."""

        def said():
            if self._process.poll() is not None:
                raise RuntimeError(f"offline generation ended with {self._process.returncode}: {self._log.read_text()}")
            return [line for line in self._log.read_text().splitlines() if line.startswith("[]") or line[:2] == "[["]

        return wait_for(lambda: len(said()) > self._asked and said()[-1], _START_S, poll_s=0.05)

    def round(self):
        """Tokens a second of one round."""
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        self._asked += 1
        ((tokens, seconds),) = json.loads(self.wait())
        return tokens / seconds


def _pipeline(bench, config, prompts, in_flight_groups):
    create_topics(config)
    worker = WorkerProcess(bench.directory / "worker", config)
    rollout = {"group_size": 8, "max_in_flight": in_flight_groups, "fetch_wait_ms": 500}
    with contextlib.ExitStack() as opened:
        opened.callback(worker.process.wait)
        opened.callback(worker.process.terminate)
        run = opened.enter_context(bench.pipeline(config.model.path, [worker.url], **rollout))
        worker.wait_for_log("engine_warm", _START_S)
        _publish(bench, config)
        worker.wait_until_serving(1, _START_S)
        run.send(prompts)
        run.warm()
        groups, rates, seen = len(prompts) // _ROUNDS, [], 0
        for waves in range(1, _ROUNDS + 1):
            started = time.monotonic()
            run.admit(waves * groups)
            run.watch.wait_for(waves * groups, 900, run.process)
            rates.append((run.watch.tokens - seen) / (time.monotonic() - started))
            seen = run.watch.tokens
        return {"tokens_s": rates, "slots": run.slot_shares()}


def _publish(bench, config):
    import torch
    from transformers import AutoModelForCausalLM

    from trainers.publish import probe_tokens

    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=getattr(torch, config.model.dtype))
    probe = probe_of(model, probe_tokens(config.model.path))
    announced = write_version(config.weights.root, 1, state_of(model), probe=probe, dtype=config.model.dtype)
    announce(bench.broker.bootstrap, config.topics.weights, announced)
