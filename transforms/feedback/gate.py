"""The first look at a feedback record: is it one, may its sender say so, and not too often?

    value ──► decode ──► receipt ──► rate of the user ──► held out? ──► Judged
       └──────────┴────────┴───────────────┴────────────────┴────────► a fate at once

What is refused here never reaches the pipeline's state, so a flood by one user delays nobody else. Forged records are
told apart before they count against the user whose name they bear. Rates are those of the topics' times, and records
come in that order, so a user's limit does not depend on when they are read.
"""

import hashlib
from collections.abc import Iterable
from contextlib import suppress

import structlog

from schemas.config import RunConfig
from schemas.dead_letters import DeadLetter
from schemas.errors import RecordError
from schemas.feedback import Feedback
from schemas.outcomes import Fate
from schemas.receipts import Receipts
from schemas.trace_context import TraceContext
from transforms.buckets import Buckets
from transforms.feedback.drift import Drift
from transforms.feedback.items import Judged, Refused, Settled, Source

_LOG = structlog.get_logger(__name__)


class Gate:
    """Lets judgements through, or says what becomes of them.

    Args:
        config: of the run.

    Raises:
        ConfigError: the key of receipts cannot be read.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config, self._rules = config, config.feedback
        self._prefix = f"{config.name}/"
        self._receipts = Receipts.load(self._rules.key_file) if self._rules.key_file else None
        self._buckets = Buckets(self._rules.user_rate_per_s, self._rules.user_burst)
        self._drift = Drift(self._rules.drift_window, self._rules.drift_alarm)

    def look(self, source: Source, value: bytes | None, trace: TraceContext | None = None) -> Judged | Refused:
        """One record of the feedback topic, and the span in which it was given."""
        try:
            feedback = Feedback.decode(value)
        except RecordError as error:
            return self._malformed(source, error, value or b"")
        fate = self._refuse(feedback, source.appended_s)
        if fate in (None, "held_out") and feedback.channel == "rating":
            self._drift.hear(float(feedback.value or 0), held_out=fate == "held_out")
        return Refused(source, fate, feedback.feedback_id) if fate else Judged(source, feedback, trace)

    def remember(self, source: Source, value: bytes | None) -> None:
        """A record that was looked at before a restart and not refused for its rate: it counts for its user's still."""
        with suppress(RecordError):
            self._refuse(Feedback.decode(value), source.appended_s)

    def _refuse(self, feedback: Feedback, appended_s: float) -> Fate | None:
        if not feedback.rollout_id.startswith(self._prefix):
            return "unknown"
        if self._receipts:
            fault = self._receipts.find_fault(feedback.receipt, feedback.rollout, feedback.user, appended_s)
            if fault:
                return fault
        if self._buckets.take(feedback.user, appended_s):
            return "rate_limited"
        return "held_out" if is_held_out(feedback.user, self._rules.held_out_share) else None

    def _malformed(self, source: Source, error: RecordError, value: bytes) -> Refused:
        _LOG.warning("feedback_malformed", place=source.place, reason=error.reason, detail=error.detail[:300])
        where = (self._config.topics.feedback, *source.place)
        return Refused(source, "malformed", "", DeadLetter.of("join", error.reason, error.detail, where, value))


def is_held_out(user: str, share: float) -> bool:
    """Whether a user belongs to the share that watches; the same for every run and at any time."""
    digest = hashlib.sha256(f"held-out/{user}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def merge(found: Iterable[Refused | Settled]) -> Settled | None:
    """All that needs no state as one; null if there is none."""
    refused, settled = [], list[Settled]()
    for each in found:
        if isinstance(each, Refused):
            refused.append(each)
        else:
            settled.append(each)
    if not refused and not settled:
        return None
    return Settled(
        refused=tuple(refused),
        letters=tuple(letter for each in settled for letter in each.letters),
        judged=tuple(source for each in settled for source in each.judged),
        passed=tuple(source for each in settled for source in each.passed),
    )
