"""The learner's step: is it as fast as bare torch, what does packing gain, what do logprobs and publishing cost?

    learner   samples ─► share_out ─► Engine.train                                    tokens/s
    bare      the same packs ─► model, all logits at once ─► backward ─► AdamW        tokens/s
    padded    the same samples, a row each, padded to the longest ─► as bare          tokens/s
    memory    logprobs of one pass and their gradient: peak in chunks ÷ at once, each in a process of its own
    overhead  a version written, and committed with ledger entry and frontier to a real broker ÷ a step

    python -m tests.benchmarks.learner [--size 135m] [--peak-tflops 989]

Prints one JSON object, with code 1 if a figure misses its bar. Rounds alternate between the three loops, and the
fastest of each counts. The model has the shape of ``--size`` and random weights; lengths are log-normal with mean 200
and at most 1,024 tokens, a quarter of each is prompt. The bare loops attend with the learner's own function
(``trainers/attention.py``) where sequences are packed and with transformers' where they are padded; in half precision
they too keep weights in float32 beside the model. ``overhead`` is over a step of 64 samples, at the rate that the
learner showed.
"""

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path

from pipelines.local.broker import Broker
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas.admission import AdmissionFrontier
from schemas.config import KafkaConfig, LearnerConfig, ModelConfig, RunConfig, WeightsConfig
from schemas.identity import GroupId
from schemas.ledger import StepEntry, TrainedGroup
from schemas.weights import WeightVersion
from tests.benchmarks.generation import at_least, at_most
from tests.benchmarks.turns import add_option, wait_for_turn
from tests.benchmarks.weights import SHAPES, make_shape

MEAN_TOKENS, LONGEST_TOKENS, SPREAD = 200, 1024, 1.0
SAMPLES_A_STEP = 64
BARS = {"over_bare": 0.95, "packed_over_padded": 1.8, "overhead": 0.03}
RATE = 1e-6
CLIP = 0.2


def main():
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the local stack's learner
    options = parse()
    if options.memory:
        sys.stdout.write(f"{memory(options)}\n")
        return 0
    figures = {"memory_bytes": memory_of_both(options)}
    with ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="asyncflow-learner-")))
        bench = Bench(options, directory, opened)
        wait_for_turn(options.after)
        figures |= bench.measure()
    figures["chunked_over_full_memory"] = figures["memory_bytes"]["chunked"] / figures["memory_bytes"]["full"]
    bars = {name: at_least(figures[name], bar) for name, bar in BARS.items() if name != "overhead"}
    bars["overhead"] = at_most(figures["overhead"]["share"], BARS["overhead"])
    sys.stdout.write(json.dumps({**figures, "bars": bars}, indent=1) + "\n")
    return 0 if all(bar["reached"] for bar in bars.values()) else 1


def parse():
    import torch

    from trainers.precision import fastest_dtype

    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")  # else DeepSpeed warns on the standard output
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="135m")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=fastest_dtype())
    parser.add_argument("--samples", type=int, default=512 if cuda else 24, help="of one step")
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384 if cuda else 4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, help="of the device in this dtype: also gives the share reached")
    add_option(parser)
    parser.add_argument("--memory", choices=("chunked", "full"), help=argparse.SUPPRESS)
    return parser.parse_args()


def draw_examples(number, vocabulary):
    from trainers.batch import Example

    draw = random.Random(0)
    lengths = [round(draw.lognormvariate(math.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD)) for _ in range(number)]
    lengths = [min(LONGEST_TOKENS, max(4, length)) for length in lengths]
    trained = sum(length - length // 4 for length in lengths)
    examples = []
    for length in lengths:
        answer = length - length // 4
        tokens = tuple(draw.choices(range(vocabulary), k=length))
        behaviour = tuple(draw.gauss(-math.log(vocabulary), 0.1) for _ in range(answer))
        examples.append(Example(tokens, length // 4, behaviour, (True,) * answer, draw.gauss(0, 1), 1 / trained))
    return examples


def tokens_of(examples):
    return sum(len(example.token_ids) for example in examples)


# ---- the three loops ----------------------------------------------------------------------------------


class Bench:
    """The learner's engine and a bare loop, both loaded, and a broker."""

    def __init__(self, options, directory, opened):
        import torch
        from transformers import AutoModelForCausalLM

        from trainers.commit import Committer
        from trainers.engine import Engine
        from trainers.publish import WeightStore, probe_tokens
        from trainers.ranks import Ranks

        self.options = options
        model = build_tiny_model(directory / "model")  # for its tokenizer
        torch.manual_seed(0)
        dtype = getattr(torch, options.dtype)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # a CPU draws 1.5 billion numbers in minutes
            AutoModelForCausalLM.from_config(make_shape(options.size), dtype=dtype).save_pretrained(model)
        broker = opened.enter_context(Broker(directory / "kafka"))
        self.config = RunConfig(
            name="learner-bench",
            kafka=KafkaConfig(bootstrap=broker.bootstrap),
            model=ModelConfig(path=str(model), dtype=options.dtype),
            weights=WeightsConfig(root=str(directory / "weights"), keep=2),
            learner=LearnerConfig(micro_batch_tokens=options.micro_batch_tokens),
        )
        create_topics(self.config)
        ranks = Ranks()
        opened.callback(ranks.leave)
        self.device = ranks.device
        self.engine = Engine(self.config, options.dtype, ranks)
        self.probe = probe_tokens(str(model))
        self.store = opened.enter_context(closing(WeightStore(self.config.weights)))
        self.committer = opened.enter_context(closing(Committer(self.config)))
        self.examples = draw_examples(options.samples, self.engine.vocabulary)
        self.bare = BareLoop(self.config, dtype, self.device)

    def measure(self):
        """Seconds of each loop, in turn, after one turn with a few samples that warms up."""
        loops = {"learner": self.learner, "bare": self.bare_packed, "padded": self.bare_padded}
        seconds = {name: [] for name in (*loops, "publish", "commit")}
        examples, self.examples = self.examples, self.examples[:4]
        for name, loop in loops.items():
            self.turn(name, loop)
        self.examples = examples
        engine_bytes = self.turn("learner", self.resident)
        peaks = {name: self.turn(name, self.peak, loop) for name, loop in loops.items()}
        if self.device.type == "cuda":
            peaks |= {name: peaks[name] - engine_bytes for name in ("bare", "padded")}
        for number in range(self.options.rounds):
            for name, loop in loops.items():
                if name != "padded" or number % 2 == 0:  # the longest of the three, and the farthest from its bar
                    seconds[name].append(self.turn(name, self.timed, loop))
            self.publish(number + 1, seconds)
            sys.stderr.write(json.dumps({name: round(found[-1], 3) for name, found in seconds.items()}) + "\n")
        return {**self.figures(seconds), "peak_bytes": peaks}

    def turn(self, name, run, *of):
        """A GPU may have no room for both: the bare loop lies in the memory of the CPU while it waits."""
        if self.device.type == "cuda":
            self.bare.move("cpu" if name == "learner" else self.device)
        return run(*of)

    def timed(self, loop):
        import torch

        wait = torch.cuda.synchronize if self.device.type == "cuda" else lambda: None
        wait()
        started = time.perf_counter()
        loop()
        wait()
        return time.perf_counter() - started

    def learner(self):
        assert self.engine.train(self.work(self.packs())).applied

    def work(self, packs):
        from trainers.engine import Work

        return Work([packs], RATE)

    def packs(self):
        from trainers.packing import share_out

        return share_out(self.examples, 1, self.options.micro_batch_tokens)[0]

    def peak(self, loop):
        """Most bytes on a GPU while a loop ran once."""
        import torch

        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        self.timed(loop)
        return torch.cuda.max_memory_allocated()

    def resident(self):
        """Bytes on a GPU now."""
        import torch

        return torch.cuda.memory_allocated() if self.device.type == "cuda" else None

    def bare_packed(self):
        self.bare.step([lambda pack=pack: self.bare.packed(pack) for pack in self.packs()])

    def bare_padded(self):
        rows = padded_batches(self.examples, self.options.micro_batch_tokens)
        self.bare.step([lambda batch=batch: self.bare.padded(batch) for batch in rows])

    def publish(self, step, seconds):
        """What the learner does between two steps; see ``Learner._step``."""
        from trainers.publish import Facts

        def write():
            facts = Facts(version=step, step=step, dtype=self.options.dtype)
            asked = lambda: {"token_ids": self.probe, "logprobs": self.engine.probe(self.probe)}  # noqa: E731
            self.sha256 = self.store.write(self.engine.state_dict(), facts, asked)

        seconds["publish"].append(self.timed(write))
        groups = tuple(TrainedGroup(group=GroupId(0, step * 8 + n), at=(0, step * 8 + n), attempt="a", samples=8,
                                    versions=(step, step)) for n in range(SAMPLES_A_STEP // 8))  # fmt: skip
        metrics = {f"metric_{n}": 1 / 3 for n in range(30)}
        ours = {"generation": 1, "version": step}
        records = [
            StepEntry(step=step, trained=groups, dropped=(), metrics=metrics, **ours),
            WeightVersion(step=step, manifest_sha256=self.sha256, dtype=self.options.dtype, base_model="x", **ours),
            AdmissionFrontier(frontier={0: step, 1: step}, **ours),
        ]
        seconds["commit"].append(self.timed(lambda: self.committer.commit(records)))
        self.store.prune(step)

    def figures(self, seconds):
        """Of the fastest round of each: what slows a round down is what else the machine does."""
        tokens, best = tokens_of(self.examples), {name: min(found) for name, found in seconds.items()}
        rates = {name: tokens / best[name] for name in ("learner", "bare", "padded")}
        step_s = SAMPLES_A_STEP * MEAN_TOKENS / rates["learner"]
        between_s = best["publish"] + best["commit"]
        return {
            "device": device_name(self.device), "dtype": self.options.dtype, "size": self.options.size,
            "samples": len(self.examples), "tokens": tokens, "packs": len(self.packs()),
            "padded_tokens": sum(len(batch) * longest(batch) for batch in
                                 padded_batches(self.examples, self.options.micro_batch_tokens)),
            "seconds": seconds, "tokens_s": rates, **self.share_of_peak(rates),
            "over_bare": rates["learner"] / rates["bare"],
            "packed_over_padded": rates["bare"] / rates["padded"],
            "overhead": {"publish_s": best["publish"], "commit_s": best["commit"], "step_s": step_s,
                         "share": between_s / step_s},
        }  # fmt: skip

    def share_of_peak(self, rates):
        """Of the products that a model needs, 2 in the forward and 4 in the backward pass: 6 a weight and token, and
        in each layer 12 a unit of width, token and token that it sees, of which there are half a sequence's."""
        if not self.options.peak_tflops:
            return {}
        weights = sum(parameter.numel() for parameter in self.bare.model.parameters())
        shape = self.bare.model.config
        seen = sum(len(e.token_ids) ** 2 / 2 for e in self.examples) / tokens_of(self.examples)
        attention = 12 * shape.num_hidden_layers * shape.hidden_size * seen
        return {"mfu": rates["learner"] * (6 * weights + attention) / (self.options.peak_tflops * 1e12)}


class BareLoop:
    """What one would write without us: a transformers model, all logits at once, AdamW."""

    def __init__(self, config, dtype, device):
        import torch

        from trainers.policy import load_model

        self.model, self.device = load_model(config.model.path, dtype).to(device), device
        self.weights = [p if dtype == torch.float32 else p.detach().float() for p in self.model.parameters()]
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE, betas=(0.9, 0.95), fused=True)

    def move(self, device):
        import torch

        self.model.to(device)
        for weight in self.weights:
            weight.grad = None
            weight.data = weight.data.to(device)
            for name, value in self.optimizer.state.get(weight, {}).items():
                self.optimizer.state[weight][name] = value.to(device)
        torch.cuda.empty_cache()

    def step(self, losses):
        import torch

        for loss in losses:
            loss().backward()
        for weight, parameter in zip(self.weights, self.model.parameters(), strict=True):
            weight.grad = parameter.grad.float()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.model.zero_grad()
        with torch.no_grad():
            for weight, parameter in zip(self.weights, self.model.parameters(), strict=True):
                parameter.copy_(weight)

    def packed(self, examples):
        from trainers.attention import PACKED, Sequences
        from trainers.packing import to_pack

        pack = to_pack(examples).to(self.device)
        self.model.set_attn_implementation(PACKED)
        where = Sequences.of(pack.lengths, self.device)
        body = self.model.model(pack.token_ids_N[None], position_ids=pack.position_ids_N[None], use_cache=False,
                                sequences=where)  # fmt: skip
        return self.loss(body.last_hidden_state[0][pack.index_R], pack)

    def padded(self, examples):
        import torch

        from trainers.packing import to_pack

        pack, width = to_pack(examples), longest(examples)
        rows = [list(example.token_ids) + [0] * (width - len(example.token_ids)) for example in examples]
        real = [[1] * len(example.token_ids) + [0] * (width - len(example.token_ids)) for example in examples]
        starts = [0, *torch.tensor(pack.lengths).cumsum(0).tolist()]
        shift = torch.tensor([number * width - start for number, start in enumerate(starts[:-1])])
        index = (pack.index_R + shift[pack.sequence_R]).to(self.device)
        self.model.set_attn_implementation("sdpa")
        body = self.model.model(torch.tensor(rows, device=self.device), use_cache=False,
                                attention_mask=torch.tensor(real, device=self.device))  # fmt: skip
        return self.loss(body.last_hidden_state.flatten(0, 1)[index], pack.to(self.device))

    def loss(self, hidden, pack):
        import torch

        logprobs = self.model.lm_head(hidden).float().log_softmax(1).gather(1, pack.target_R[:, None])[:, 0]
        ratio = (logprobs - pack.behaviour_R).exp()
        clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
        return -(torch.min(ratio * pack.advantages_R, clipped * pack.advantages_R) * pack.weights_R).sum()


def padded_batches(examples, micro_batch_tokens):
    """As they come, as many rows as fit into as many tokens as a pack, padding included."""
    batches = [[]]
    for example in examples:
        if batches[-1] and (len(batches[-1]) + 1) * longest([*batches[-1], example]) > micro_batch_tokens:
            batches.append([])
        batches[-1].append(example)
    return batches


def longest(examples):
    return max(len(example.token_ids) for example in examples)


def device_name(device):
    import torch

    cuda = device.type == "cuda"
    return torch.cuda.get_device_name(device) if cuda else f"CPU, {torch.get_num_threads()} threads, {cpu_kind()}"


def cpu_kind():
    import torch

    return torch.backends.cpu.get_cpu_capability()


# ---- memory -------------------------------------------------------------------------------------------


def memory_of_both(options):
    """Bytes beyond what lay there before the pass, each way in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.learner", "--size", options.size, "--dtype", options.dtype,
               "--micro-batch-tokens", str(options.micro_batch_tokens), "--memory"]  # fmt: skip
    asked = {way: subprocess.run([*command, way], stdout=subprocess.PIPE, text=True, check=True, timeout=300)
             for way in ("chunked", "full")}  # fmt: skip
    return {way: int(done.stdout.split()[-1]) for way, done in asked.items()}


def memory(options):
    """Peak bytes of the logprobs of a pack of trained tokens and of their gradient, over a model of one layer."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainers import attention
    from trainers.policy import Policy

    attention.register()
    shape = make_shape(options.size)
    shape.num_hidden_layers = 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    causal = AutoModelForCausalLM.from_config(
        shape, dtype=getattr(torch, options.dtype), attn_implementation=attention.PACKED
    ).to(device)
    hidden = torch.randn(options.micro_batch_tokens, shape.hidden_size, dtype=causal.dtype, device=device)
    target = torch.randint(shape.vocab_size, (options.micro_batch_tokens,), device=device)
    policy = Policy(causal, 1.0, kept_bytes=0)

    def logprobs(hidden, target):
        if options.memory == "chunked":
            return torch.cat(list(policy._chunks(hidden, target, entropy=False)))
        return causal.lm_head(hidden).float().log_softmax(1).gather(1, target[:, None])[:, 0]

    logprobs(hidden[:64].requires_grad_(), target[:64]).sum().backward()  # gradients lie there, kernels are loaded
    before = peak_bytes(device, reset=True)
    logprobs(hidden.detach().requires_grad_(), target).sum().backward()
    return peak_bytes(device) - before


def peak_bytes(device, *, reset=False):
    import torch

    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
