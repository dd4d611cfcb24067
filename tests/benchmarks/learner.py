"""The learner's step: is it as fast as bare torch, what does packing gain, what do logprobs and publishing cost?

    learner   samples ─► share_out ─► Engine.train                                    tokens/s
    bare      the same packs ─► model, all logits at once ─► backward ─► AdamW        tokens/s
    padded    the same samples, a row each, padded to the longest ─► as bare          tokens/s
    memory    logprobs of one pass and their gradient: peak in chunks ÷ at once, each in a process of its own
    overhead  steps that publish, each while the next one's gradient is computed: written, and committed with ledger
              entry and frontier to a real broker ─► what they take more than steps that do not ÷ a step
    rooms     the learner's step again for each of --kept-bytes, see learner.kept_logits_bytes
    profile   torch.profiler over one step of the learner and of the bare loop: DIR/learner-135m.txt, DIR/bare-135m.txt

    python -m tests.benchmarks.learner [--sizes 135m 1.5b] [--peak-tflops 989] [--kept-bytes 0 1e9] [--profile DIR]

Prints one JSON object, with code 1 if a figure misses its bar. Rounds alternate between the three loops, and the
fastest of each counts. The model has the shape of ``--size`` and random weights; lengths are log-normal with mean 200
and at most 1,024 tokens, a quarter of each is prompt. The bare loops attend with the learner's own function
(``trainers/attention.py``) where sequences are packed and with transformers' where they are padded; in half precision
they too keep weights in float32 beside the model. ``overhead`` is over steps of 64 samples, or of ``--samples`` if
these are fewer: ``held_s`` of it is the training thread's wait for the step before, ``handed_over_s`` what it does to
hand the weights over, and the rest is what two threads take from each other. On a CPU the thread that publishes has no
core of its own, and the difference is lost in what rounds differ by: there the share is all that it did, over a step of
64 samples at the rate that the learner showed. Several sizes are run one after the
other, each in a process of its own, and printed as a list.
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

import structlog

from pipelines.local.broker import Broker
from pipelines.local.tiny_model import build_tiny_model
from pipelines.local.topics import create_topics
from schemas.admission import AdmissionFrontier
from schemas.config import KafkaConfig, LearnerConfig, ModelConfig, RunConfig, WeightsConfig
from schemas.identity import GroupId
from schemas.ledger import StepEntry, TrainedGroup
from schemas.weights import WeightVersion
from tests.benchmarks.generation import at_least, at_most
from tests.benchmarks.stack import end_orderly
from tests.benchmarks.turns import add_option, wait_for_turn
from tests.benchmarks.weights import SHAPES, make_shape

MEAN_TOKENS, LONGEST_TOKENS, SPREAD = 200, 1024, 1.0
SAMPLES_A_STEP = 64
BARS = {"over_bare": 0.95, "packed_over_padded": 1.8, "overhead": 0.03}
PARTS = ("held_s", "handed_over_s", "publish_s", "commit_s")
"""Of a step that publishes; the first two are the training thread's."""
OVERLAP = ("alone", "publishing", "probe_alone_s", *PARTS)
PUBLISHED = {"cpu": 2, "cuda": 10}
"""Steps in a row of one measurement."""
STATE_BYTES = 18
"""Of a weight in bfloat16: 4 beside it in float32, 8 of moments, 6 of gradients in both."""
RATE = 1e-6
CLIP = 0.2


def main():
    end_orderly()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the local stack's learner
    options = parse()
    if options.sizes:
        return run_each(options)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if options.memory:
        sys.stdout.write(f"{memory(options)}\n")
        return 0
    figures = {} if options.skip_memory else memory_of_both(options)
    with ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="asyncflow-learner-")))
        bench = Bench(options, directory, opened)
        wait_for_turn(options.after)
        figures |= bench.measure()
    bars = {name: at_least(figures[name], bar) for name, bar in BARS.items() if name != "overhead"}
    bars["overhead"] = at_most(figures["overhead"]["share"], BARS["overhead"])
    sys.stdout.write(json.dumps({**figures, "bars": bars}, indent=1) + "\n")
    return 0 if all(bar["reached"] for bar in bars.values()) else 1


def run_each(options):
    """The same command for each size; prints a list, code 1 if any is 1."""
    given = [each for each in sys.argv[1:] if each not in ("--sizes", *options.sizes)]
    command = [sys.executable, "-m", "tests.benchmarks.learner", *given]
    done = [subprocess.run([*command, "--size", size], stdout=subprocess.PIPE, text=True, check=False)
            for size in options.sizes]  # fmt: skip
    sys.stdout.write(json.dumps([json.loads(each.stdout) for each in done], indent=1) + "\n")
    return max(each.returncode for each in done)


def parse():
    import torch

    from trainers.precision import fastest_dtype

    cuda = torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if cuda else "cpu")  # else DeepSpeed warns on the standard output
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SHAPES, default="135m")
    parser.add_argument("--sizes", choices=SHAPES, nargs="+", help="several, instead of --size")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default=fastest_dtype())
    parser.add_argument("--samples", type=int, default=512 if cuda else 24, help="of one step")
    parser.add_argument("--micro-batch-tokens", type=int, default=16_384 if cuda else 4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak-tflops", type=float, help="of the device in this dtype: also gives the share reached")
    parser.add_argument("--kept-bytes", type=lambda text: int(float(text)), nargs="*", default=[], help="sweep")
    parser.add_argument("--skip-memory", action="store_true", help="leaves out memory")
    parser.add_argument("--profile", type=Path, help="directory for torch.profiler's tables")
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
        from trainers.outbox import Outbox
        from trainers.publish import WeightStore
        from trainers.ranks import Ranks
        from trainers.updates import Updates

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
        self.updates = Updates(self.config, options.dtype, ranks, checkpoint=None)
        self.engine = self.updates._engine
        self.room = self.engine._trained.module.room
        self.store = opened.enter_context(closing(WeightStore(self.config.weights)))
        self.committer = opened.enter_context(closing(Committer(self.config)))
        self.outbox = opened.enter_context(closing(Outbox()))
        self.version = 0
        self.examples = draw_examples(options.samples, self.engine.vocabulary)
        self.bare = BareLoop(self.config, dtype, self.device)
        self.apart = self.device.type == "cuda" and not self.both_fit()

    def both_fit(self):
        """Whether half of a GPU holds weights, gradients and moments of both."""
        import torch

        weights = sum(parameter.numel() for parameter in self.bare.model.parameters())
        return 2 * STATE_BYTES * weights < torch.cuda.mem_get_info(self.device)[1] / 2

    def measure(self):
        """Seconds of each loop, in turn, after one turn with a few samples that warms up."""
        loops = {"learner": self.learner, "bare": self.bare_packed, "padded": self.bare_padded}
        seconds = {name: [] for name in (*loops, *OVERLAP)}
        examples, self.examples = self.examples, self.examples[:4]
        for name, loop in loops.items():
            self.turn(name, loop)
        self.examples = examples
        peaks = {name: self.turn(name, self.peak, loop) for name, loop in loops.items()}
        for number in range(self.options.rounds):
            for name, loop in loops.items():
                if name != "padded" or number % 2 == 0:  # the longest of the three, and the farthest from its bar
                    seconds[name].append(self.turn(name, self.timed, loop))
            self.turn("learner", self.overlap, seconds)
            sys.stderr.write(json.dumps({name: round(found[-1], 3) for name, found in seconds.items()}) + "\n")
        found = {**self.figures(seconds), "peak_bytes": peaks, "room": self.room._asdict()}
        found["rooms"] = [self.turn("learner", self.try_room, kept) for kept in self.options.kept_bytes]
        if self.options.profile:
            for name in ("learner", "bare"):
                self.turn(name, self.profile, name, loops[name])
        return found

    def turn(self, name, run, *of):
        """A GPU may have no room for both: the bare loop lies in the memory of the CPU while it waits."""
        if self.apart:
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
        """Most bytes on a GPU while a loop ran once, without those of the other loop's state."""
        import torch

        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        self.timed(loop)
        state = {"learner": self.engine_bytes(), "bare": self.bare.bytes_on(self.device)}
        other = "bare" if loop == self.learner else "learner"
        return torch.cuda.max_memory_allocated() - state[other]

    def engine_bytes(self):
        """Of the learner's weights, those in float32 beside them, and moments; gradients are gone between steps."""
        module, optimizer = self.engine._trained.module, self.engine._optimizer
        kept = {id(each): each for each in module.parameters()}
        for group in optimizer.param_groups:
            kept |= {id(each): each for each in group["params"]}
        moments = [value for state in optimizer.state.values() for value in state.values()]
        return sum(each.nbytes for each in (*kept.values(), *moments))

    def try_room(self, kept_bytes):
        """The learner's step where so much of its logits is kept: the fastest of as many as there are rounds."""
        from trainers.logits import find_room

        module = self.engine._trained.module
        module.room = find_room(kept_bytes, self.device, 0)
        peak = self.peak(self.learner)
        seconds = [self.timed(self.learner) for _ in range(self.options.rounds)]
        tried, module.room = module.room, self.room
        return {**tried._asdict(), "seconds": seconds, "tokens_s": tokens_of(self.examples) / min(seconds),
                "peak_bytes": peak}  # fmt: skip

    def profile(self, name, loop):
        """Two tables of one step: what the device does, and what the processor does to ask for it."""
        from torch.profiler import ProfilerActivity, profile

        cuda = self.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities) as profiled:
            self.timed(loop)
        averages = profiled.key_averages()
        orders = (*(["self_device_time_total"] if cuda else []), "self_cpu_time_total")
        tables = [averages.table(sort_by=order, row_limit=60, max_name_column_width=90) for order in orders]
        self.options.profile.mkdir(parents=True, exist_ok=True)
        target = self.options.profile / f"{name}-{self.options.size}.txt"
        target.write_text("\n".join(f"by {order}\n{table}" for order, table in zip(orders, tables, strict=True)))

    def bare_packed(self):
        self.bare.step([lambda pack=pack: self.bare.packed(pack) for pack in self.packs()])

    def bare_padded(self):
        rows = padded_batches(self.examples, self.options.micro_batch_tokens)
        self.bare.step([lambda batch=batch: self.bare.padded(batch) for batch in rows])

    def overlap(self, seconds):
        """Steps in a row that publish nothing, and as many that do, as ``Learner._step`` has it."""
        examples, self.examples = self.examples, self.examples[:SAMPLES_A_STEP]
        count = PUBLISHED[self.device.type]
        work = self.work(self.packs())
        seconds["alone"].append(self.timed(lambda: [self.engine.train(work) for _ in range(count)]) / count)
        self.parts = {name: [] for name in PARTS}
        self.publish_beside(work)  # from here on there is always one on its way
        self.parts = {name: [] for name in PARTS}
        seconds["publishing"].append(self.timed(lambda: [self.publish_beside(work) for _ in range(count)]) / count)
        self.outbox.settle()
        seconds["probe_alone_s"].append(self.timed(self.updates._ask_probe))
        for name, found in self.parts.items():
            seconds[name].append(sum(found) / len(found))
        self.examples = examples

    def publish_beside(self, work):
        assert self.engine.train(work, lambda: self.part("held_s", self.outbox.settle)).applied
        self.part("handed_over_s", self.hand_over)

    def part(self, name, run, *of):
        started = time.perf_counter()
        told = run(*of)
        self.parts[name].append(time.perf_counter() - started)
        return told

    def hand_over(self):
        """As ``Standing.publish_step``."""
        self.version += 1
        version = self.version
        write = self.updates.prepare(self.store, version, version)

        def job():
            digest = self.part("publish_s", write)
            self.part("commit_s", self.committer.commit, self.records(version, digest))

        self.outbox.put(job, lambda _: self.outbox.chore(lambda: self.store.prune(version)))

    def records(self, step, digest):
        groups = tuple(TrainedGroup(group=GroupId(0, step * 8 + n), at=(0, step * 8 + n), attempt="a", samples=8,
                                    versions=(step, step)) for n in range(SAMPLES_A_STEP // 8))  # fmt: skip
        metrics = {f"metric_{n}": 1 / 3 for n in range(30)}
        ours = {"generation": 1, "version": step}
        return [
            StepEntry(step=step, trained=groups, dropped=(), metrics=metrics, **ours),
            WeightVersion(step=step, manifest_sha256=digest, dtype=self.options.dtype, base_model="x", **ours),
            AdmissionFrontier(frontier={0: step, 1: step}, **ours),
        ]

    def figures(self, seconds):
        """Of the fastest round of each: what slows a round down is what else the machine does."""
        tokens, best = tokens_of(self.examples), {name: min(found) for name, found in seconds.items()}
        rates = {name: tokens / best[name] for name in ("learner", "bare", "padded")}
        return {
            "device": device_name(self.device), "dtype": self.options.dtype, "size": self.options.size,
            "samples": len(self.examples), "tokens": tokens, "packs": len(self.packs()),
            "padded_tokens": sum(len(batch) * longest(batch) for batch in
                                 padded_batches(self.examples, self.options.micro_batch_tokens)),
            "seconds": seconds, "tokens_s": rates, **self.share_of_peak(rates),
            "over_bare": rates["learner"] / rates["bare"],
            "packed_over_padded": rates["bare"] / rates["padded"],
            "overhead": self.overhead(best, rates["learner"]),
        }  # fmt: skip

    def overhead(self, best, rate):
        found = {**{name: best[name] for name in OVERLAP}, "samples": min(SAMPLES_A_STEP, len(self.examples))}
        if self.device.type == "cuda":
            return {**found, "share": best["publishing"] / best["alone"] - 1}
        taken_s = best["handed_over_s"] + best["publish_s"] + best["commit_s"]
        return {**found, "share": taken_s / (SAMPLES_A_STEP * MEAN_TOKENS / rate)}

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

    def bytes_on(self, device):
        """Of weights and moments."""
        state = [value for state in self.optimizer.state.values() for value in state.values()]
        kept = {id(each): each for each in (*self.model.parameters(), *self.weights, *state)}
        return sum(each.nbytes for each in kept.values() if each.device == device)

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
    found = {way: int(done.stdout.split()[-1]) for way, done in asked.items()}
    return {"memory_bytes": found, "chunked_over_full_memory": found["chunked"] / found["full"]}


def memory(options):
    """Peak bytes of the logprobs of a pack of trained tokens and of their gradient, over a model of one layer."""
    import torch
    from transformers import AutoModelForCausalLM

    from trainers import attention
    from trainers.logits import SMALL, Room
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
    policy = Policy(causal, 1.0, Room(0, SMALL.chunk_logits))

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
