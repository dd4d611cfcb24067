"""The whole system as events: admission, engines, pipeline and log, learner, weights.

    admitted ──► a place in flight ──► Engine ──► share ──► partition ──► learner: has it? drops it? a step?
       ▲                                 ▲                                   │
       │                              fetch_s                              train
       └───────────── commit ────────────┴──────────── publish_s ────────────┘

It follows the rules of the code and not its bytes. Admission and staleness are those of ``trainers/admission.py`` and
``trainers/planner.py``, the choice of an engine is that of ``transforms/generation/workers.py``, and as in
``trainers/outbox.py`` a step is published beside the next gradient and no update is made before the last is committed.
Equal seeds give equal results.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count, islice
from math import ceil, inf

from pipelines.plan.calibration import Calibration
from pipelines.plan.engine import Engine, Group, Worked
from pipelines.plan.lengths import draw_lengths

_OVERLOAD = 1.25
"""As in ``transforms/generation/workers.py``: an engine takes at most this multiple of its part of the load."""
_MOST_LOOKED_AT = 64
"""Engines among which one is chosen; of more than that some are drawn."""
_DRAWN = 16


@dataclass(frozen=True, slots=True)
class Shape:
    """How much there is of everything that a plan can change. Example: ``Shape(engines=4, ranks=2)``."""

    engines: int
    ranks: int = 1
    partitions: int = 2
    """Of the prompts and trajectories, and shares of the rollout pipeline: one each."""


@dataclass(slots=True)
class Totals:
    """What was done so far, in seconds, groups and tokens."""

    at_s: float = 0.0
    groups: int = 0
    """Trained."""
    response_tokens: float = 0.0
    """Of the answers that were trained."""
    generated_tokens: float = 0.0
    """Of all answers."""
    without_variance: int = 0
    stale: int = 0
    """Groups that were dropped because they became too old."""
    staleness: int = 0
    """Sum over the groups trained of how many versions they were behind."""
    staleness_max: int = 0
    waiting_s: float = 0.0
    """In which the learner had too few groups."""
    held_s: float = 0.0
    """In which it waited for the commit of the step before."""
    group_s: float = 0.0
    """Groups in flight times the seconds that they were."""
    worked: Worked = field(default_factory=Worked)
    """All engines added up."""


class Simulation:
    """One run of the system.

    Args:
        calibration: how fast each part is.
        shape: how much there is of each.
        seed: of lengths and choices.

    Attributes:
        totals: what was done so far.
        asked: groups that were admitted.
        answered: groups that the learner got.
    """

    def __init__(self, calibration: Calibration, shape: Shape, seed: int = 0) -> None:
        self._work, self._speeds, self._shape = calibration.workload, calibration, shape
        self._engines = [Engine(calibration.engine) for _ in range(shape.engines)]
        self._stamps = [0] * shape.engines
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._lengths = draw_lengths(self._work.response_tokens, seed)
        self._random = random.Random(seed)
        self._now_s = 0.0
        self._admitted: deque[list[int]] = deque()
        self._in_flight = 0
        self._places = calibration.log.max_in_flight or inf
        self._shares = [0.0] * shape.partitions
        self._partitions = [0.0] * shape.partitions
        self._written = 0
        self._ready: dict[int, list[Group]] = {}
        self._at_hand = 0
        self._taken: list[Group] = []
        self._is_held = self._is_committing = False
        self._idle_since_s = self._gradient_s = self._counted_s = 0.0
        self._released = 0
        self.totals = Totals()
        self.steps = self.version = self.asked = self.answered = 0

    def run(self, steps: int) -> Totals:
        """Goes on until so many steps are done in all."""
        if not self.asked:
            self._admit()
        while self.steps < steps:
            self._now_s, _, handle = heappop(self._events)
            handle()
        return self._sum()

    def _sum(self) -> Totals:
        self._count_in_flight(0)
        for engine in self._engines:
            engine.advance(self._now_s)
        worked = [engine.worked for engine in self._engines]
        self.totals.worked = Worked(*(sum(getattr(each, name) for each in worked) for name in Worked.__slots__))
        self.totals.at_s = self._now_s
        return self.totals

    def _after(self, seconds: float, handle: Callable[[], None]) -> None:
        heappush(self._events, (self._now_s + seconds, next(self._order), handle))

    # ---- prompts ------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """As many as keep every sample within the staleness."""
        target = self._released + (1 + self._work.max_staleness) * self._work.groups_per_step
        if target > self.asked:
            self._admitted.append([target - self.asked, self.version])
            self.asked = target
            self._ask()

    def _ask(self) -> None:
        """Fills free places in flight."""
        while self._admitted and self._in_flight < self._places:
            waiting = self._admitted[0]
            self._count_in_flight(1)
            self._send(waiting[1])
            waiting[0] -= 1
            if not waiting[0]:
                self._admitted.popleft()

    def _count_in_flight(self, change: int) -> None:
        self.totals.group_s += self._in_flight * (self._now_s - self._counted_s)
        self._counted_s = self._now_s
        self._in_flight += change

    def _send(self, min_version: int) -> None:
        lengths = list(islice(self._lengths, self._work.group_size))
        number = self._choose()
        self._engines[number].ask(Group(lengths, self._work.prompt_tokens, min_version), self._now_s)
        self._watch(number)

    def _choose(self) -> int:
        """The engine for a group: any that has no more than its part of the load, or else the emptiest."""
        size, engines = self._work.group_size, self._engines
        load = self._in_flight * size
        allowed = max(size, min(ceil(_OVERLOAD * load / len(engines)), self._speeds.engine.slots))
        numbers: Sequence[int] = range(len(engines))
        if len(engines) > _MOST_LOOKED_AT:
            numbers = self._random.sample(numbers, _DRAWN)
        free = [number for number in numbers if engines[number].load + size <= allowed]
        return self._random.choice(free) if free else min(numbers, key=lambda number: engines[number].load)

    # ---- engines ------------------------------------------------------------------------------------

    def _watch(self, number: int) -> None:
        """Sets the event of the engine's next end anew; an older one is void."""
        self._stamps[number] += 1
        end_s = self._engines[number].next_end_s()
        if end_s < inf:
            self._after(max(0.0, end_s - self._now_s), partial(self._end, number, self._stamps[number]))

    def _end(self, number: int, stamp: int) -> None:
        if stamp != self._stamps[number]:
            return
        group = self._engines[number].end_sequence(self._now_s)
        if group is not None:
            self.totals.generated_tokens += group.response_tokens
            self._count_in_flight(-1)
            self._write(group)
            self._ask()
        self._watch(number)

    def _take_version(self, version: int) -> None:
        for number, engine in enumerate(self._engines):
            if version > engine.version:
                engine.take_version(version, self._now_s, self._speeds.weights.pause_s)
                self._watch(number)

    # ---- pipeline and log ---------------------------------------------------------------------------

    def _write(self, group: Group) -> None:
        """One share after the other, one partition after the other: each does its groups in turn."""
        log, tokens, place = self._speeds.log, group.response_tokens, self._written % self._shape.partitions
        self._written += 1
        done_s = max(self._now_s, self._shares[place]) + tokens * log.share_token_s
        self._shares[place] = done_s
        stored_s = max(done_s, self._partitions[place]) + tokens * log.token_bytes / log.partition_bytes_per_s
        self._partitions[place] = stored_s
        self._after(stored_s + log.latency_s - self._now_s, partial(self._receive, group))

    # ---- learner ------------------------------------------------------------------------------------

    def _receive(self, group: Group) -> None:
        self.answered += 1
        if self._random.random() < self._work.kept_share:
            self._ready.setdefault(group.oldest, []).append(group)
            self._at_hand += 1
        else:
            self.totals.without_variance += 1
            self._released += 1
        self._look()

    def _look(self) -> None:
        """What the learner does between steps: drops what is too old, replaces what was dropped, begins a step."""
        if self._taken:
            return
        self._drop_stale()
        if not self._is_committing:
            self._admit()
        if self._at_hand >= self._work.groups_per_step:
            self._begin_step()

    def _drop_stale(self) -> None:
        for oldest in [each for each in self._ready if self.steps - each > self._work.max_staleness]:
            dropped = len(self._ready.pop(oldest))
            self.totals.stale += dropped
            self._at_hand -= dropped
            self._released += dropped

    def _begin_step(self) -> None:
        """Takes those with the oldest weights first."""
        for oldest in sorted(self._ready):
            groups = self._ready[oldest]
            wanted = self._work.groups_per_step - len(self._taken)
            self._taken += groups[:wanted]
            del groups[:wanted]
            if not groups:
                del self._ready[oldest]
        self._at_hand -= len(self._taken)
        self.totals.waiting_s += self._now_s - self._idle_since_s
        self._after(self._train_s(), self._end_gradient)

    def _train_s(self) -> float:
        """Ranks share the tokens evenly, but a sequence is computed by one of them."""
        tokens = sum(group.tokens for group in self._taken)
        longest = max(group.longest_tokens for group in self._taken)
        learner = self._speeds.learner
        return learner.fixed_s + learner.token_s * max(tokens / self._shape.ranks, longest)

    def _end_gradient(self) -> None:
        """The update waits for the commit of the step before."""
        self._gradient_s = self._now_s
        if self._is_committing:
            self._is_held = True
        else:
            self._update()

    def _update(self) -> None:
        self.totals.held_s += self._now_s - self._gradient_s
        self._count_trained()
        self._released += len(self._taken)
        self.steps += 1
        self._taken, self._is_held, self._is_committing = [], False, True
        self._idle_since_s = self._now_s
        self._after(self._speeds.learner.publish_s, self._commit)
        self._look()

    def _count_trained(self) -> None:
        behind = [self.steps - group.oldest for group in self._taken]
        self.totals.groups += len(behind)
        self.totals.response_tokens += sum(group.response_tokens for group in self._taken)
        self.totals.staleness += sum(behind)
        self.totals.staleness_max = max(self.totals.staleness_max, *behind)

    def _commit(self) -> None:
        """Weights and admission become known at once."""
        self._is_committing = False
        self.version += 1
        self._after(self._speeds.weights.fetch_s, partial(self._take_version, self.version))
        self._admit()
        if self._is_held:
            self._update()
        else:
            self._look()
