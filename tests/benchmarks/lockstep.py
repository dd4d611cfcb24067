"""A training run at an exact staleness: every group of a step is so many versions old, no more and no less.

    prompts ─► sampler, transformers ─► groups ─► queue of as many batches as versions ─► Updates.train ─► weights
                   ▲                                                                                        │
                   └────────────────────────────────────────────────────────────────────────────────────────┘

The stack bounds the age of samples; a sweep needs it fixed. So generation and training take turns in one process:
the batch of a step was sampled before the steps that are in the queue, whatever the machine's speeds. What trains
is the learner's own :class:`trainers.updates.Updates`; what samples is transformers' layers in the learner's number
format (``tests/benchmarks/decoding.py``), so that the two differ by rounding as an engine and a learner do.

Shape suffixes: B answers, P tokens of a prompt, T of an answer, V vocabulary.
"""
# ruff: noqa: N806 - the suffixes are the shapes

import gc
import os
import random
import statistics
from collections import defaultdict, deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import count

from pipelines.local.demo_prompts import sums
from pipelines.presets import load_preset
from schemas.config import validate
from schemas.trajectories import Sample, Span

START = datetime(2026, 1, 1, tzinfo=UTC)
FRUITLESS_FACTOR = 4
"""As :data:`trainers.planner.FRUITLESS_FACTOR`: a step goes on with what it has after so many groups of one reward."""

ACCURACY_EVERY = 4
"""Steps."""

GPU_MICRO_BATCH_TOKENS = 4096
"""On a GPU a step is one pack: there many small ones take longer."""

GAP = 0.15
"""In nats: the most that tokens decoded one by one may differ from the same tokens at once, in the mean."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One run of the sweep."""

    staleness: int
    """Weight versions that every sample of a step is behind."""
    correction: str
    seed: int
    steps: int
    learning_rate: float
    shuffled: bool = False
    """Rewards are dealt out anew within each step: nothing can be learned, which shows that something else was."""


def make_config(model, dtype, setting, device):
    """The demo's, with what the setting and a GPU change."""
    tree = load_preset("demo")
    tree["model"] = {"path": str(model), "dtype": dtype}
    tree["learner"] |= {"steps": setting.steps, "learning_rate": setting.learning_rate,
                        "objective": {"correction": setting.correction}}  # fmt: skip
    if device.type == "cuda":
        tree["learner"]["micro_batch_tokens"] = GPU_MICRO_BATCH_TOKENS
    return validate(tree, "sweep")


class Lockstep:
    """A run, ready to begin. One process can do several, one after the other."""

    def __init__(self, model, dtype, setting, ranks):
        import torch

        from trainers.updates import Updates

        torch.manual_seed(setting.seed)
        self.setting = setting
        self.config = make_config(model, dtype, setting, ranks.device)
        self.ranks = ranks
        self.updates = Updates(self.config, dtype, self.ranks, None)
        self.sampler = sampler(self.config.model.path, dtype, self.ranks.device)
        self.sampler.begin(self.config, self.updates)
        self.prompts = sums(setting.seed)
        self.stream = self.prompts.stream(1_000_000, setting.seed)
        self.shuffle = random.Random(setting.seed)

    def run(self):
        """The held-out accuracy before and after every :data:`ACCURACY_EVERY` steps, and the figures of each step."""
        from trainers.optimizer import learning_rate

        queue = deque(self.batch(0) for _ in range(self.setting.staleness + 1))
        accuracy, rewards, figures = [self.accuracy()], [], []
        for step in range(self.setting.steps):
            groups, mean = queue.popleft()
            rate = learning_rate(self.config.learner, step, self.setting.steps)
            rewards.append(mean)
            figures.append(self.train(groups, rate))
            self.sampler.load(self.updates)
            queue.append(self.batch(step + 1))
            if (step + 1) % ACCURACY_EVERY == 0:
                accuracy.append(self.accuracy())
        return {"accuracy": accuracy, "rewards": rewards, "figures": figures}

    def train(self, groups, rate):
        from trainers.planner import Arrival, Plan

        arrivals = tuple(Arrival(group[0].group, (0, number), tuple(group)) for number, group in enumerate(groups))
        if not arrivals:
            return {}
        outcome = self.updates.train(Plan(arrivals, (), ()), rate)
        return {"applied": outcome.applied, "grad_norm": outcome.grad_norm, **outcome.figures}

    def batch(self, version):
        """The groups of a step that teach something, and the mean reward of all that were asked for."""
        from trainers.advantages import has_variance

        wanted, groups, rewards = self.config.learner.groups_per_step, [], []
        most = wanted * (1 + FRUITLESS_FACTOR)
        at_once = most if self.ranks.device.type == "cuda" else wanted  # a GPU answers all as fast as some
        for _ in range(most // at_once):
            if len(groups) >= wanted:
                break
            drawn = [next(self.stream) for _ in range(at_once)]
            sampled = self.sampler.sample(drawn, self.config.rollout.group_size, version)
            rewards += [sample.reward for group in sampled for sample in group]
            groups += [group for group in sampled if has_variance([sample.reward for sample in group])]
        return self.deal(groups[:wanted]), statistics.fmean(rewards)

    def deal(self, groups):
        if not self.setting.shuffled:
            return groups
        rewards = [sample.reward for group in groups for sample in group]
        self.shuffle.shuffle(rewards)
        dealt = iter(rewards)
        return [[replace(sample, reward=next(dealt)) for sample in group] for group in groups]

    def accuracy(self):
        """Of greedy answers to the held-out prompts."""
        answers = self.sampler.sample(list(self.prompts.held_out), 1, 0, greedy=True)
        return statistics.fmean(group[0].reward for group in answers)

    def close(self):
        """Frees the device for the next run."""
        del self.updates
        gc.collect()


@cache
def sampler(path, dtype, device):
    """One for all runs of a process: its CUDA graphs are made once."""
    return Sampler(path, dtype, device)


class Sampler:
    """The behaviour policy: a copy of the weights, asked by transformers' layers."""

    def __init__(self, path, dtype, device):
        import torch
        from transformers import AutoModelForCausalLM

        from transforms.generation.tokenizer import Tokenizer

        self.device = device
        self.tokenizer = Tokenizer.load(path)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).to(device)
        self.model.eval()
        self.end = self.model.generation_config.eos_token_id
        self.decoder = None

    def begin(self, config, updates):
        """A run: its configuration, and the learner's weights."""
        from tests.benchmarks.decoding import Decoder

        tokens = config.rollout.sampling.max_tokens
        if self.decoder is None or self.decoder.tokens != tokens:
            self.decoder = Decoder(self.model, tokens)
        self.config, self.group = config, count()
        self.load(updates)

    def load(self, updates):
        """Takes the learner's weights."""
        self.model.load_state_dict(updates._engine.state_dict(), strict=False)  # a tied head is not in it

    def sample(self, prompts, size, version, *, greedy=False):
        """For each prompt ``size`` samples with their rewards; prompts of one length are asked for at once."""
        by_length = defaultdict(list)
        for prompt in prompts:
            tokens = self.tokenizer.encode(prompt)
            by_length[len(tokens)].append((prompt, tokens))
        return [group for asked in by_length.values() for group in self.ask(asked, size, version, greedy)]

    def ask(self, asked, size, version, greedy):
        import torch

        tokens_BP = torch.tensor([tokens for _, tokens in asked for _ in range(size)], device=self.device)
        answers_BT, logprobs_BT = self.decoder.answer(tokens_BP, greedy=greedy)
        if greedy:  # now and then is enough
            gap = float((self.decoder.logprobs(tokens_BP, answers_BT) - logprobs_BT).abs().mean())
            assert gap < GAP, f"tokens decoded one by one are {gap:.3f} nats from the same at once"
        pairs = list(zip(answers_BT.tolist(), logprobs_BT.tolist(), strict=True))
        return [self.to_group(*each, pairs[number * size : (number + 1) * size], version)
                for number, each in enumerate(asked)]  # fmt: skip

    def to_group(self, prompt, tokens, pairs, version):
        from transforms.rewards.last_number import RightNumber, last_number

        blank, arguments = self.blank(prompt, tokens, version), RightNumber(**prompt.reward.args)
        samples = [self.answered(blank, index, *pair) for index, pair in enumerate(pairs)]
        return [replace(sample, reward=last_number(sample, arguments).value) for sample in samples]

    def answered(self, blank, index, answer, logprobs):
        length = answer.index(self.end) + 1 if self.end in answer else len(answer)
        return replace(
            blank, sample_index=index, response_token_ids=tuple(answer[:length]),
            response_logprobs=tuple(logprobs[:length]), loss_mask=(True,) * length,
            finish_reason="stop" if self.end in answer else "length",
            response_text=self.tokenizer.decode([answer[:length]])[0],
        )  # fmt: skip

    def blank(self, prompt, tokens, version):
        """A sample without an answer, of the next group."""
        return Sample(
            run=self.config.name, prompt_partition=0, prompt_offset=next(self.group), sample_index=0,
            attempt_id="lockstep", prompt_id=prompt.prompt_id, task=prompt.task, purpose="train",
            prompt_token_ids=tokens, response_token_ids=(), response_logprobs=(), loss_mask=(),
            weight_version_spans=(Span(version, 0),), weight_version_min=version, weight_version_max=version,
            reward=None, reward_parts={}, reward_error=None, finish_reason="", worker="transformers", prompt_at=START,
            generated_at=START, response_text="",
        )  # fmt: skip


def prepare():
    """What must be said before torch and DeepSpeed are imported."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
