"""One judgement from its bytes to its acknowledgement.

    JSON or a form ─► Feedback ─► receipt ─► limit of its user ─► {run}.feedback ─acknowledged─► 202

What the feedback pipeline would refuse is refused here already, with a sentence; it checks again, because other
producers write to the topic as well.
"""

import json
import math
import time
import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from fastapi import HTTPException

from pipelines.gateway import metrics
from pipelines.gateway.appender import Appender
from schemas import traces
from schemas.config import RunConfig
from schemas.errors import BrokerError, RecordError
from schemas.feedback import Feedback
from schemas.receipts import Receipts
from schemas.records import isoformat, now
from transforms.buckets import Buckets

_AHEAD: Final = timedelta(seconds=60)
"""How far a sender's clock may be ahead: the newest judgement holds, and nobody's may for ever."""
_NUMBERS: Final = ("score", "thumb")


class Accepted(NamedTuple):
    """A judgement that Kafka has."""

    feedback: Feedback
    place: tuple[int, int]
    """Partition and offset of its record."""


class Judging:
    """Takes judgements.

    Args:
        config: of the run.
        appender: to its topics.
        receipts: checks them; null if none are wanted.
    """

    def __init__(self, config: RunConfig, appender: Appender, receipts: Receipts | None) -> None:
        self._config, self._appender, self._receipts = config, appender, receipts
        self._users = Buckets(config.feedback.user_rate_per_s, config.feedback.user_burst)

    async def accept(self, given: Mapping[str, Any], user: str, traceparent: str | None = None) -> Accepted:
        """Appends a judgement to the feedback topic.

        Args:
            given: the fields of :class:`Feedback`; what it lacks of ``schema``, ``feedback_id`` and ``at`` is added.
            user: who judges.
            traceparent: of the request that brought it, if it had one.

        Raises:
            HTTPException: 400, 401, 403, 429, or 503 if Kafka did not acknowledge it.
        """
        feedback = self._read(given, user)
        self._check_receipt(feedback)
        self._check_rate(user)
        try:
            place = await self._append(feedback, traceparent)
        except BrokerError as error:
            message = f"{error}, with feedback_id {feedback.feedback_id!r}: twice the same counts once"
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, message, {"Retry-After": "2"}) from error
        metrics.JUDGEMENTS.labels(feedback.kind).inc()
        return Accepted(feedback, place)

    async def _append(self, feedback: Feedback, traceparent: str | None) -> tuple[int, int]:
        key, value = feedback.rollout_id.encode(), feedback.encode()
        trace = traces.begin(uuid.uuid4().hex, traceparent, "http")
        with traces.spanning(trace, "judgement", rollout=feedback.rollout_id, kind=feedback.kind):
            headers = dict(traces.headers_of(trace))
            place = await self._appender.append(self._config.topics.feedback, value, key, headers)
        return place.partition, place.offset

    def _read(self, given: Mapping[str, Any], user: str) -> Feedback:
        fields = {**given, "user": user}
        fields["feedback_id"] = fields.get("feedback_id") or uuid.uuid4().hex
        fields["at"] = fields.get("at") or isoformat(now())
        try:
            feedback = Feedback.decode(json.dumps(fields).encode())
        except RecordError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, error.detail) from error
        if feedback.rollout.run != self._config.name:
            message = f"rollout {feedback.rollout_id!r} is of another run, this is {self._config.name!r}"
            raise HTTPException(HTTPStatus.BAD_REQUEST, message)
        _check_clock(feedback.at)
        return feedback

    def _check_receipt(self, feedback: Feedback) -> None:
        if self._receipts is None:
            return
        if feedback.receipt is None:
            raise HTTPException(HTTPStatus.UNAUTHORIZED, "a receipt is wanted: the one that came with the answer")
        fault = self._receipts.find_fault(feedback.receipt, feedback.rollout, feedback.user, time.time())
        if fault == "expired_receipt":
            raise HTTPException(HTTPStatus.FORBIDDEN, "the receipt has expired: this answer can be judged no more")
        if fault is not None:
            message = "the receipt is not one for this user and this answer: send the one that came with the answer"
            raise HTTPException(HTTPStatus.FORBIDDEN, message)

    def _check_rate(self, user: str) -> None:
        wait_s = self._users.take(user)
        if wait_s:
            message = f"more than {self._config.feedback.user_rate_per_s:g} judgements a second by one user; wait"
            raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, message, {"Retry-After": str(math.ceil(wait_s))})


def _check_clock(at: datetime) -> None:
    if at > now() + _AHEAD:
        message = f"at {at.isoformat()} lies in the future: leave it out, or set the sender's clock"
        raise HTTPException(HTTPStatus.BAD_REQUEST, message)


def read_fields(body: bytes, content_type: str) -> dict[str, Any]:
    """The fields of a judgement, as JSON or as a form of the page sends them.

    Raises:
        HTTPException: 400 if it is neither, 415 for another type.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return _read_form(body)
    if kind not in ("application/json", ""):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is not JSON in UTF-8") from error
    if not isinstance(fields, dict):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body is no JSON object")
    return fields


def _read_form(body: bytes) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = dict(parse_qsl(body.decode("ascii"), errors="strict", max_num_fields=20))
        if fields.get("kind") in _NUMBERS:
            fields["value"] = float(fields.get("value", ""))
    except ValueError as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the form cannot be read") from error
    return fields


def user_in(fields: Mapping[str, Any]) -> str | None:
    """The user that a body names; null if it names none.

    Raises:
        HTTPException: 400 if it is no name.
    """
    user = fields.get("user")
    if user is None or (isinstance(user, str) and 0 < len(user) <= 256):
        return user
    raise HTTPException(HTTPStatus.BAD_REQUEST, "user: expected a text of 1 to 256 characters")
