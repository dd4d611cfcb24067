"""One engine: sequences that all gain a token in each decoding step, a queue before them, and pauses for new weights.

All sequences of an engine advance alike, so one number says how far they are: its *progress*, the tokens that a
sequence which had run from the start would have by now. A sequence of L tokens that begins at progress p ends at
p + L. So an engine costs one event for each sequence, however many tokens that has.
"""

from collections import deque
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf

from pipelines.plan.calibration import EngineSpeed


@dataclass(slots=True, eq=False)
class Group:
    """The samples of one prompt, answered by one engine."""

    lengths: list[float]
    """Of its answers, in tokens."""
    prompt_tokens: float
    min_version: int
    """It is answered by this version of the weights or a newer one."""
    oldest: int = -1
    """The version under which its first sample began; -1 before."""
    unfinished: int = field(init=False)

    def __post_init__(self) -> None:
        self.unfinished = len(self.lengths)

    @property
    def response_tokens(self) -> float:
        """Of all its answers."""
        return sum(self.lengths)

    @property
    def tokens(self) -> float:
        """What the learner computes: the prompt is repeated in each sample."""
        return self.response_tokens + self.prompt_tokens * len(self.lengths)

    @property
    def longest_tokens(self) -> float:
        """Of its longest sample, with the prompt."""
        return max(self.lengths) + self.prompt_tokens


@dataclass(slots=True)
class Worked:
    """What engines did, in seconds of one engine."""

    sequence_s: float = 0.0
    """Sequences times the seconds that they decoded."""
    decoding_s: float = 0.0
    """In which at least one sequence decoded."""
    paused_s: float = 0.0
    """In which nothing decoded because of new weights, what is computed again included."""
    prefill_s: float = 0.0
    """In which nothing decoded because of prompts."""


class Engine:
    """Computes groups. Times are seconds of the simulation and never go back.

    Attributes:
        load: samples of the groups that it has not answered in full.
        version: of its weights.
        worked: what it did so far.
    """

    __slots__ = ("_at_s", "_begun", "_held", "_order", "_progress", "_prompts", "_running", "_speed", "_waiting",
                 "load", "version", "worked")  # fmt: skip

    def __init__(self, speed: EngineSpeed) -> None:
        self._speed = speed
        self._running: list[tuple[float, int, float, Group]] = []
        self._waiting: deque[tuple[float, Group]] = deque()
        self._held: list[Group] = []
        self._order = count()
        self._at_s = self._progress = 0.0
        self._begun = self._prompts = 0.0
        self.load = self.version = 0
        self.worked = Worked()

    def ask(self, group: Group, now_s: float) -> None:
        """Takes a group; it waits while its version is not here, and each sample while there is no slot."""
        self.load += len(group.lengths)
        if group.min_version > self.version:
            self._held.append(group)
            return
        self.advance(now_s)
        self._enqueue(group)

    def take_version(self, version: int, now_s: float, pause_s: float) -> None:
        """Pauses, takes new weights, and computes again what is under way."""
        self.advance(now_s)
        self.version = version
        self.worked.paused_s += self._pause(pause_s + self._prefill_s(self._context_tokens()))
        held, self._held = self._held, []
        for group in held:
            if group.min_version > version:
                self._held.append(group)
            else:
                self._enqueue(group)

    def next_end_s(self) -> float:
        """When the next sequence ends if nothing comes in between."""
        if not self._running:
            return inf
        left_tokens = max(0.0, self._running[0][0] - self._progress)
        return self._at_s + left_tokens * self._speed.decoding_step_s(len(self._running))

    def end_sequence(self, now_s: float) -> Group | None:
        """Ends the sequence that is next, at :meth:`next_end_s`; its group if that was the last of it."""
        self.advance(now_s)
        end, _, begin, group = heappop(self._running)
        self._progress = end  # and not what rounding made of it
        self._begun -= begin
        group.unfinished -= 1
        if not group.unfinished:
            self.load -= len(group.lengths)
            self._prompts -= group.prompt_tokens
        self._fill()
        return None if group.unfinished else group

    def advance(self, now_s: float) -> None:
        """Decodes until now; a pause that goes on longer is left to end."""
        passed_s, running = now_s - self._at_s, len(self._running)
        if passed_s <= 0:
            return
        if running:
            self._progress += passed_s / self._speed.decoding_step_s(running)
            self.worked.sequence_s += passed_s * running
            self.worked.decoding_s += passed_s
        self._at_s = now_s

    def _enqueue(self, group: Group) -> None:
        self._waiting.extend((length, group) for length in group.lengths)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._speed.slots:
            length, group = self._waiting.popleft()
            if group.oldest < 0:
                self._begin(group)
            self._begun += self._progress
            heappush(self._running, (self._progress + length, next(self._order), self._progress, group))

    def _begin(self, group: Group) -> None:
        group.oldest = self.version
        self._prompts += group.prompt_tokens
        self.worked.prefill_s += self._pause(self._prefill_s(group.prompt_tokens))

    def _context_tokens(self) -> float:
        """Of the sequences that are running; the samples of a prompt share it."""
        return self._prompts + self._progress * len(self._running) - self._begun

    def _prefill_s(self, tokens: float) -> float:
        return tokens / self._speed.prefill_tokens_per_s if self._speed.prefill_tokens_per_s else 0.0

    def _pause(self, seconds: float) -> float:
        self._at_s += seconds
        return seconds
