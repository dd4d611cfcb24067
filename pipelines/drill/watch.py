"""What an outsider sees of the run while it is being hurt: the log, audited again and again.

    topics ──► RunReader ──► audit ──► counts (what two audits in a row agree about)
    workers ──► /metrics, /asyncflow/status ──► tokens generated, versions served

Nothing here asks the processes whether they are right; only the log counts. Workers are asked what
they serve, because a version that must not be served would never reach the log if no prompt met it.
"""

import base64
import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from itertools import pairwise
from typing import Any, Final
from urllib.request import urlopen

import structlog

from pipelines.audit import FAULTS_SHOWN, Verdict, audit
from pipelines.drill.rewards import HOSTILE, SHARE, share_of
from pipelines.log import RunLog, RunReader
from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import BrokerError
from schemas.identity import GroupId
from schemas.ledger import StepEntry, surviving_steps
from schemas.trajectories import Sample

_AUDIT_PAUSE_S: Final = 2.0
_LOOK_PAUSE_S: Final = 0.5
_TIMEOUT_S: Final = 2.0
_CLOSE: Final = 1e-5
_UNREADABLE: Final = (OSError, HTTPException, ValueError, TypeError, LookupError, ArithmeticError)
"""What reading a worker's answer can raise; it may be anything, for workers are killed while they answer."""
COUNTS: Final = (
    "lost",
    "duplicate",
    "mixed_attempts",
    "unknown_versions",
    "zombie_commits",
    "half_commits",
    "admission_excess",
    "unreadable",
)
"""Of the audit: all must be 0."""
_LOG = structlog.get_logger(__name__)


def agreed(now: Verdict, before: Verdict) -> dict[str, int]:
    """The faults that two audits in a row found, by kind.

    A transaction becomes visible topic by topic, and an audit of a live run may look in between; where steps are fast
    two audits in a row do, at different steps. So it is by its words that a fault is the same, unless these say how
    much (``admission_excess``) or are not all there.
    """
    same = Counter(fault.partition(":")[0] for fault in {*now.faults} & {*before.faults})
    every = max(len(now.faults), len(before.faults)) < FAULTS_SHOWN
    least = {name: min(getattr(now, name), getattr(before, name)) for name in COUNTS}
    return {name: same[name] if every and name != "admission_excess" else least[name] for name in COUNTS}


class Watch:
    """Two threads that only read.

    Args:
        config: of the run.
        workers: base URLs of those that are asked what they serve.

    Attributes:
        verdict: of the newest audit; None before the first.
        audited_at: when the newest audit began.
        admitted: prompts that may be answered.
        defaulted: samples whose reward is not what it has to be.
        served: every weight version that a worker said it serves.
        tokens_generated: by the workers' engines, as far as it was seen.
        tokens_committed: of all groups in the log.
    """

    def __init__(self, config: RunConfig, workers: Sequence[str]) -> None:
        self._config = config
        self._ended = threading.Event()
        self._generated: dict[tuple[GroupId, str], datetime] = {}
        self._before: Verdict | None = None
        self._counters = dict.fromkeys(workers, 0)
        self.verdict: Verdict | None = None
        self.counts: dict[str, int] = dict.fromkeys(COUNTS, 0)
        self.audited_at = datetime.min.replace(tzinfo=UTC)
        self.log = RunLog()
        self.line: list[StepEntry] = []
        self.admitted = 0
        self.defaulted: list[str] = []
        self.served: set[int] = set()
        self.tokens_generated = self.tokens_committed = 0

    def start(self) -> None:
        """Begins to read."""
        for name, work in (("audit", self._audit_on), ("look", self._look_on)):
            threading.Thread(target=self._repeat, args=(work,), name=name, daemon=True).start()

    def stop(self) -> None:
        """Ends both threads, soon."""
        self._ended.set()

    @property
    def tokens_again(self) -> int:
        """Tokens that were generated and are in no committed group: lost to a fault, or in flight."""
        return max(0, self.tokens_generated - self.tokens_committed)

    def recovered_at(self, since: datetime) -> datetime | None:
        """When the first step was committed that trained a group generated after ``since``: the whole loop works."""
        for step in self.line:
            if step.at > since and any(self._generated_at(step, index) > since for index in range(len(step.trained))):
                return step.at
        return None

    def _generated_at(self, step: StepEntry, index: int) -> datetime:
        trained = step.trained[index]
        return self._generated.get((trained.group, trained.attempt), datetime.min.replace(tzinfo=UTC))

    def productive_s(self, begin: datetime, end: datetime) -> float:
        """Seconds that the learner trained, or waited for a step's commit, in surviving steps of a time."""
        steps = [step for step in self.line if begin < step.at <= end]
        return sum(step.metrics["seconds_train"] + step.metrics["seconds_held"] for step in steps)

    def longest_stall_s(self, begin: datetime, end: datetime) -> float:
        """The longest time between two times in which no step was committed that survived until the second."""
        line = surviving_steps(entry for entry in self.log.ledger if entry.at < end)
        times = [begin, *(step.at for step in line if step.at > begin), end]
        return max((later - earlier).total_seconds() for earlier, later in pairwise(times))

    def groups_per_s(self, begin: datetime, end: datetime) -> float:
        """Groups that surviving steps trained between two times."""
        count = sum(len(step.trained) for step in self.line if begin < step.at <= end)
        return round(count / max(1e-9, (end - begin).total_seconds()), 3)

    def steps_per_minute(self, begin: datetime, end: datetime) -> float:
        """Surviving steps that were committed between two times."""
        count = sum(begin < step.at <= end for step in self.line)
        return round(60 * count / max(1e-9, (end - begin).total_seconds()), 1)

    def _repeat(self, work: Callable[[], None]) -> None:
        from kafka.errors import KafkaError

        while not self._ended.is_set():
            try:
                work()
            except (KafkaError, BrokerError, OSError, ValueError) as error:
                _LOG.debug("not readable now", what=work.__name__.strip("_"), reason=str(error)[:120])
                self._ended.wait(_LOOK_PAUSE_S)

    # ---- the log ------------------------------------------------------------------------------------

    def _audit_on(self) -> None:
        self._generated.clear()
        self.defaulted.clear()
        self.tokens_committed = 0
        with RunReader(self._config.kafka, self._config.name, self._on_group) as reader:
            while not self._ended.wait(_AUDIT_PAUSE_S):
                begun = datetime.now(UTC)
                self._take(reader.advance(), begun)

    def _take(self, log: RunLog, begun: datetime) -> None:
        verdict = audit(self._config.name, log)
        self.counts = agreed(verdict, self._before) if self._before else dict.fromkeys(COUNTS, 0)
        self._before = verdict
        self.log, self.line = log, surviving_steps(log.ledger)
        self.admitted, self.verdict, self.audited_at = verdict.admitted, verdict, begun

    def _on_group(self, samples: list[Sample]) -> None:
        first = samples[0]
        self._generated[first.group, first.attempt_id] = first.generated_at
        for sample in samples:
            self.tokens_committed += len(sample.response_token_ids)
            if not is_reward_right(sample):
                self.defaulted.append(f"{sample.rollout_id}: {sample.reward} for {sample.prompt_id}")

    # ---- the workers --------------------------------------------------------------------------------

    def _look_on(self) -> None:
        while not self._ended.wait(_LOOK_PAUSE_S):
            for url in self._counters:
                self._look_at(url)

    def _look_at(self, url: str) -> None:
        try:
            self.served.add(int(_get_json(f"{url}/asyncflow/status")["version"]))
            self._count(url, read_counter(_get(f"{url}/metrics"), "vllm:generation_tokens_total"))
        except _UNREADABLE as error:  # it is away, or talks rubbish, and the others do not
            _LOG.debug("worker not readable now", worker=url, reason=str(error)[:120])

    def _count(self, url: str, total: int) -> None:
        """Adds what came since the last look; a counter that went back belongs to a new process."""
        before, self._counters[url] = self._counters[url], total
        self.tokens_generated += total - before if total >= before else total


def is_reward_right(sample: Sample) -> bool:
    """Whether the sample has the reward that its prompt and answer give it, and none if they give none."""
    name, _, letter = (sample.prompt_id or "").partition("/")
    if name in HOSTILE:
        return sample.reward is None
    if sample.reward is None:
        return sample.reward_error is not None
    return abs(sample.reward - share_of(sample.response_text, letter)) < _CLOSE


def is_good(letter: DeadLetter) -> bool:
    """Whether a dead letter is of a prompt that should have been answered and scored."""
    try:
        prompt = json.loads(base64.b64decode(letter.head_base64))
    except ValueError:
        return False
    return isinstance(prompt, dict) and str(prompt.get("prompt_id")).startswith(f"{SHARE}/")


def read_counter(text: str, name: str) -> int:
    """The sum of one counter's series in Prometheus' text form."""
    lines = (line for line in text.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))


def _get(url: str) -> str:
    with urlopen(url, timeout=_TIMEOUT_S) as answer:  # noqa: S310 - our own address
        text: str = answer.read().decode()
    return text


def _get_json(url: str) -> Any:
    return json.loads(_get(url))
