"""From the end of an optimizer step to the first token under the new weights, and the tokens that it cost.

    learner (this process): weights ──update──► WeightStore.write ──► Committer ──► weights topic
    worker (a process, vLLM): full of requests all the time ──► streams whose tokens are timed one by one

    python -m tests.benchmarks.weights --size 135m --transport store
    python -m tests.benchmarks.weights --model DIR --transport ipc --device cuda

The learner's own training does not run meanwhile. ``first_token_s`` is what the issue asks for: from the end of
the step to the arrival, at an HTTP client, of the first token that the engine attributes to the new version, in a
stream that was running all along.
``fresh_request_s`` is the same for a request of one token that asks for the version from the end of the step on.
``--size`` takes a random model of that shape; its weights then come from the learner alone. The step is one of
AdamW's size: every weight moves by the learning rate, up or down.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack, closing
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from pathlib import Path

import aiohttp

from pipelines.local.broker import Broker
from pipelines.local.ports import free_ports
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, ModelConfig, RunConfig, WeightsConfig, WorkerConfig
from schemas.weights import WeightVersion, version_path
from tests.benchmarks.stack import end_orderly
from tests.benchmarks.turns import add_option, wait_for_turn
from tests.support.worker import WorkerProcess
from trainers.precision import fastest_dtype

BARS_S = {("cpu", "135m"): 1.0, ("cuda", "135m"): 0.3, ("cuda", "1.5b"): 0.6, ("cuda", "7b"): 2.0}
"""The median of ``first_token_s`` over the versions may not exceed these."""
LEARNING_RATE = 2e-5
STREAMS = 16
"""Most of the requests in flight whose tokens are streamed and timed: more would keep the server busy with HTTP."""
PROMPT_TOKENS = 16
LENGTHS = 8
"""Answers have an eighth, two eighths … of ``--answer-tokens``, one after the other."""
SHARED_MEMORY = "/dev/shm"
START_S = 400
SHAPES = {
    "135m": ("llama", {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
                       "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
                       "tie_word_embeddings": True}),
    "1.5b": ("qwen2", {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
                       "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
                       "tie_word_embeddings": True}),
    "7b": ("qwen2", {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                     "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
                     "tie_word_embeddings": False}),
}  # fmt: skip
"""SmolLM2-135M, Qwen2.5-1.5B and Qwen2.5-7B."""
GRAPHS = {
    "compilation_config": json.dumps(
        {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY", "cudagraph_capture_sizes": [1, 2, 4, 8, 16, 32, 64]}
    )
}
"""Graphs are captured in seconds; nothing is compiled."""
PARAMETERS = {"135m": 0.14e9, "1.5b": 1.6e9, "7b": 7.7e9}


def main():
    options = parse()
    end_orderly()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the local stack's learner
    os.environ.setdefault("DS_ACCELERATOR", options.device)  # else DeepSpeed warns on the standard output
    reached = []
    with ExitStack() as opened:
        room = tempfile.TemporaryDirectory(prefix="asyncflow-weights-", dir=options.root)
        directory = Path(opened.enter_context(room))
        if options.log:
            opened.callback(keep_log, directory, options.log)
        bench = Bench(options, directory, opened)
        for transport in options.transport:
            result = bench.measure(transport)
            reached.append(result["reached"])
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()
    return 0 if all(reached) else 1


def keep_log(directory, target):
    log = directory / "worker" / "worker.log"
    if log.exists():
        shutil.copy(log, target)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--model", type=Path, help="a Hugging Face directory; the demo's model if neither is given")
    what.add_argument("--size", choices=SHAPES)
    parser.add_argument("--transport", choices=("store", "delta", "ipc", "nccl"), nargs="+", default=["store"],
                        help="several are measured one after the other with one worker")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--worker-gpu", type=int, help="which of the GPUs is the worker's; the learner's is the first")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
                        help="auto: on a CPU what it multiplies faster")  # fmt: skip
    parser.add_argument("--versions", type=int, default=5)
    parser.add_argument("--window-s", type=float, default=2.0, help="before an update, and at least after it")
    parser.add_argument("--in-flight", type=int, default=8)
    parser.add_argument("--answer-tokens", type=int, default=128, help="the longest answers")
    parser.add_argument("--buffers", type=int, default=1)
    parser.add_argument("--graphs", action="store_true", help="let the engine decode with CUDA graphs")
    parser.add_argument("--memory-share", type=float, default=0.35, help="of the GPU: what must be free for the engine")
    parser.add_argument("--cache-gib", type=float, default=1.0, help="of the engine's key-value cache")
    add_option(parser)
    parser.add_argument("--log", help="where the worker's log goes at the end")
    parser.add_argument("--root", help="where the weight store lies; /dev/shm if there is room")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE)
    options = parser.parse_args()
    options.root = options.root or (SHARED_MEMORY if roomy(SHARED_MEMORY, options.size or "135m") else None)
    options.dtype = fastest_dtype() if options.dtype == "auto" else options.dtype
    return options


def roomy(path, size):
    """Whether four versions of the weights fit, in four bytes a parameter at most."""
    return Path(path).is_dir() and shutil.disk_usage(path).free > 16 * PARAMETERS[size]


class Bench:
    """A learner's publishing half and a worker that is never idle."""

    def __init__(self, options, directory, opened):
        import torch

        from trainers.commit import Committer
        from trainers.policy import Policy
        from trainers.publish import probe_tokens

        self.options, self.version, self.transport, self._opened = options, 0, None, opened
        model = make_model(options, directory / "model")
        broker = opened.enter_context(Broker(directory / "kafka"))
        self.config = make_config(options, directory, model, broker.bootstrap)
        create_topics(self.config)
        self.worker = opened.enter_context(WorkerProcess(directory / "worker", self.config, gpu_of_worker(options)))
        self.worker.wait_for_log("engine_warm", START_S)  # an engine measures what memory is free while it starts
        self.policy = Policy(make_learner(options, model), 1.0)
        self.probe = probe_tokens(str(model))
        self.committer = opened.enter_context(closing(Committer(self.config)))
        self.generator = torch.Generator(device=options.device).manual_seed(0)
        wait_for_turn(options.after)
        self.use(options.transport[0])
        self.publish()
        self.worker.wait_until_serving(1, START_S)
        clients = opened.enter_context(Clients(ctx=get_context("spawn")))
        self.load = clients.Load(self.worker.url, self.policy.causal.config.vocab_size, options)
        self.load.start()
        opened.callback(self.load.stop)

    def use(self, transport):
        """From now on versions travel this way; workers see it from what is published."""
        from trainers.publish import WeightStore

        if transport == self.transport:
            return
        self.transport = transport
        kind = {"transport": "store", "delta": True} if transport == "delta" else {"transport": transport}
        weights = WeightsConfig(**self.config.weights.model_dump() | kind)
        self.store = self._opened.enter_context(closing(WeightStore(weights)))

    def measure(self, transport):
        """Several versions, after one or two to warm up: the first delta needs a base."""
        self.use(transport)
        warm = 2 if transport == "delta" else 1
        try:
            versions = [self.update() for _ in range(self.options.versions + warm)][warm:]
        except AssertionError as error:  # one that does not work leaves the others
            return {"benchmark": "weights", "transport": transport, "reached": False, "error": str(error)[-3000:]}
        return summary(self, transport, versions)

    def step(self):
        """Moves every weight by the learning rate and returns when the device is done."""
        import torch

        with torch.no_grad():
            for parameter in self.policy.parameters():
                signs = torch.empty_like(parameter).bernoulli_(0.5, generator=self.generator).mul_(2).sub_(1)
                parameter.add_(signs, alpha=self.options.learning_rate)
        if self.options.device == "cuda":
            torch.cuda.synchronize()

    def publish(self):
        """What a learner does at the end of a step; returns the times of its parts."""
        import torch

        from trainers.publish import Facts

        self.version += 1
        probe_s = []

        def probe():
            started = time.monotonic()
            logprobs = self.policy.probe(self.probe)
            probe_s.append(time.monotonic() - started)
            return {"token_ids": self.probe, "logprobs": logprobs}

        started = time.monotonic()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # as the learner's engine does: what is written has to be there
        facts = Facts(version=self.version, step=self.version - 1, dtype=self.options.dtype)
        digest = self.store.write(self.policy.weights(), facts, probe)
        written = time.monotonic()
        announced = WeightVersion(
            **{"version": self.version, "step": self.version - 1, "generation": 1, "manifest_sha256": digest},
            dtype=self.options.dtype, base_model="bench",
        )  # fmt: skip
        self.committer.commit([announced])
        committed = time.monotonic()
        self.store.prune(self.version)
        return {"write_s": written - started, "learner_probe_s": probe_s[0], "commit_s": committed - written}

    def update(self):
        """One version, after a window in which nothing but generation happens."""
        before = self.tokens()
        time.sleep(self.options.window_s)
        rate = (self.tokens() - before) / self.options.window_s
        self.step()
        tokens = self.tokens()
        self.load.ask(self.version + 1)
        begun = time.monotonic()
        parts = self.publish()
        time.sleep(max(0.0, begun + self.options.window_s - time.monotonic()))
        parts |= self.applied()
        generated, passed_s = self.tokens() - tokens, time.monotonic() - begun
        arrived = self.load.first_token(self.version, timeout_s=60)
        return {
            "first_token_s": arrived - begun,
            "fresh_request_s": self.load.answered(60) - begun,
            **parts,
            "bytes_written": self.written(),
            "tokens_per_s": rate,
            "tokens_lost_in_pause": rate * parts["pause_s"],
            "tokens_lost": rate * passed_s - generated,
        }

    def tokens(self):
        """Tokens that the engine has generated since its start."""
        with urllib.request.urlopen(f"{self.worker.url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("vllm:generation_tokens_total"))

    def applied(self):
        """What the worker says of the newest version."""
        self.worker.wait_until_serving(self.version, 30)
        line = [line for line in self.worker.log.splitlines() if "version_applied" in line][-1]
        assert re.search(rf"\bversion={self.version}\b", line), line
        return {name: float(re.search(rf"\b{name}=([0-9.]+)", line)[1])
                for name in ("seen_s", "verify_s", "open_s", "pause_s", "load_s", "probe_s")}  # fmt: skip

    def written(self):
        directory = Path(version_path(self.config.weights.root, self.version))
        return sum(file.stat().st_size for file in directory.iterdir())


class Load(threading.Thread):
    """Requests that keep the engine busy; the tokens of some are streamed and timed."""

    def __init__(self, url, vocabulary, options):
        super().__init__(daemon=True)
        self._url, self._vocabulary = f"{url}/inference/v1/generate", vocabulary
        self._streams = min(STREAMS, options.in_flight)
        self._others = options.in_flight - self._streams
        self._longest = options.answer_tokens
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._asked = 0
        self._first = {}
        self._ended = [0] * self._streams
        self._changed = threading.Condition()

    def run(self):
        self._loop.run_until_complete(self._run())

    async def _run(self):
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as self._session:
            timed = [asyncio.create_task(self._stream(slot)) for slot in range(self._streams)]
            others = [asyncio.create_task(self._whole()) for _ in range(self._others)]
            await self._stopping.wait()
            for task in timed + others:
                task.cancel()
            await asyncio.gather(*timed, *others, return_exceptions=True)

    def _body(self, tokens, **more):
        self._asked += 1
        prompt = [(7 * self._asked + 3 * place) % (self._vocabulary - 20) for place in range(PROMPT_TOKENS)]
        sampling = {"max_tokens": tokens, "ignore_eos": True, "logprobs": 0, "temperature": 1.0}
        return {"token_ids": prompt, "sampling_params": sampling, **more}

    def _length(self):
        return max(1, self._longest * (1 + self._asked % LENGTHS) // LENGTHS)

    async def _whole(self):
        while True:
            async with self._session.post(self._url, json=self._body(self._length())) as answer:
                assert answer.status == 200, await answer.text()
                await answer.read()

    async def _stream(self, slot):
        while True:
            arrived, spans = [], []
            async with self._session.post(self._url, json=self._body(self._length(), stream=True)) as answer:
                assert answer.status == 200, await answer.text()
                async for line in answer.content:
                    if line.startswith(b"data: {"):
                        (choice,) = json.loads(line[6:])["choices"] or [{}]
                        arrived += [time.monotonic()] * len(choice.get("token_ids") or ())
                        spans = choice.get("weight_versions") or spans
            self._note(slot, {int(span["version"]): arrived[span["start"]] for span in spans})

    def _note(self, slot, found):
        with self._changed:
            self._ended[slot] += 1
            for version, when in found.items():
                self._first[version] = min(when, self._first.get(version, when))
            self._changed.notify_all()

    def first_token(self, version, timeout_s):
        """When the first token of a version had arrived: known when every stream that may have it has ended."""
        with self._changed:
            assert self._changed.wait_for(lambda: version in self._first, timeout_s), f"no token of version {version}"
            ended = list(self._ended)
            everyone = lambda: all(now > then for now, then in zip(self._ended, ended, strict=True))  # noqa: E731
            assert self._changed.wait_for(everyone, timeout_s), "a stream does not end"
        return self._first[version]

    def ask(self, version):
        """Asks for one token of at least this version."""
        self._fresh = asyncio.run_coroutine_threadsafe(self._ask(version), self._loop)

    def answered(self, timeout_s):
        """When the token that was asked for arrived."""
        return self._fresh.result(timeout_s)

    async def _ask(self, version):
        headers = {"X-AsyncFlow-Min-Version": str(version)}
        async with self._session.post(self._url, json=self._body(1), headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            await answer.read()
        return time.monotonic()

    def stop(self):
        self._loop.call_soon_threadsafe(self._stopping.set)
        self.join(30)


class Clients(BaseManager):
    """A process of their own for the clients, as the pipeline has one: the learner is alone in its own."""


Clients.register("Load", Load)


def make_config(options, directory, model, bootstrap):
    return RunConfig(
        name="weights-bench",
        kafka=KafkaConfig(bootstrap=bootstrap),
        model=ModelConfig(path=str(model), dtype=options.dtype),
        weights=WeightsConfig(
            root=str(directory / "weights"),
            buffers=options.buffers,
            keep=2,
        ),
        worker=WorkerConfig(
            port=free_ports(1)[0],
            max_num_seqs=max(64, options.in_flight + 8),
            gpu_memory_utilization=options.memory_share,
            kv_cache_gib=options.cache_gib,
            enforce_eager=not options.graphs,
            engine_args=engine_arguments(options),
        ),
    )


def gpu_of_worker(options):
    """What the worker's environment says of GPUs; nothing if it has the learner's."""
    import torch

    if options.worker_gpu is None:
        return {}
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = seen.split(",") if seen else [str(number) for number in range(torch.cuda.device_count())]
    if not 0 <= options.worker_gpu < len(gpus):
        raise SystemExit(f"--worker-gpu {options.worker_gpu}: there are {len(gpus)} GPUs here, counted from 0")
    return {"CUDA_VISIBLE_DEVICES": gpus[options.worker_gpu]}


def engine_arguments(options):
    arguments = {"load_format": "dummy"} if options.size else {}
    if options.device == "cuda":
        arguments["kv_cache_memory_bytes"] = int(options.cache_gib * 2**30)
    return arguments | (GRAPHS if options.graphs else {})


def make_model(options, directory):
    """The directory of ``--model``, or one that says of which shape a model of ``--size`` is."""
    if not options.size:
        from pipelines.local.demo_model import demo_model

        return options.model or demo_model()
    build_tiny_model(directory)  # for its tokenizer
    make_shape(options.size).save_pretrained(directory)
    _write_empty_weights(options, directory / "model.safetensors")
    return directory


def make_shape(size):
    from transformers import AutoConfig

    kind, shape = SHAPES[size]
    return AutoConfig.for_model(kind, **shape, max_position_embeddings=4096)


def _write_empty_weights(options, path):
    """A file with names, shapes and a hole: nobody reads more of it."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainers.shards import Shard

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(make_shape(options.size), dtype=getattr(torch, options.dtype))
    tensors = model.state_dict()
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    with path.open("wb") as stream:
        stream.write(Shard(path.name, tensors).head)
        stream.truncate(stream.tell() + sum(tensor.nbytes for tensor in tensors.values()))


def make_learner(options, model):
    import torch
    from transformers import AutoModelForCausalLM

    from trainers.policy import load_model

    dtype = getattr(torch, options.dtype)
    if not options.size:
        return load_model(str(model), dtype).to(options.device)
    torch.manual_seed(0)
    with torch.device(options.device):
        return AutoModelForCausalLM.from_config(
            make_shape(options.size), dtype=dtype, attn_implementation="sdpa"
        ).eval()


def summary(bench, transport, versions):
    """Every figure with its median and its worst over the versions."""
    options = bench.options
    figures = {name: [version[name] for version in versions] for name in versions[0]}
    first_token_s = statistics.median(figures["first_token_s"])
    size = options.size or "135m"
    bar_s = BARS_S.get((options.device, size))
    return {
        "benchmark": "weights",
        "size": size,
        "parameters": sum(parameter.numel() for parameter in bench.policy.parameters()),
        "transport": transport,
        "device": device_name(options.device),
        "dtype": options.dtype,
        "in_flight": options.in_flight,
        "versions": len(versions),
        "bar_s": bar_s,
        "reached": bar_s is None or first_token_s <= bar_s,
        **{
            name: {"median": round(statistics.median(of), 4), "worst": round(max(of), 4)}
            for name, of in figures.items()
        },
    }


def device_name(device):
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    sys.exit(main())
