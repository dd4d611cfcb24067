"""A producer for programs in Python: prompts to a run, and judgements of its answers.

    with Client("127.0.0.1:9092", "demo") as client:
        sent = client.send_prompt("What is 2+3?", task="sums")
        client.send_feedback(f"demo/{sent.partition}/{sent.offset}/0", "thumb", 1, user="ann")

Whatever a method returns, all replicas of Kafka have. Programs in other languages write the same records:
``docs/feedback-producers.md``.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from pydantic import ValidationError

from schemas.config import KafkaConfig
from schemas.errors import BrokerError, RecordError
from schemas.feedback import Feedback, FeedbackKind
from schemas.identity import GroupId, RolloutId
from schemas.producers import connect_producer
from schemas.prompts import FEEDBACK_REWARD, Message, Prompt, RewardSpec
from schemas.reach import unreachable
from schemas.records import first_fault
from schemas.topics import Topics
from schemas.trace_context import HEADER, TraceContext


@dataclass(frozen=True, slots=True)
class Sent:
    """A record that Kafka has acknowledged."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class SentPrompt(Sent):
    """A prompt, and the names of what will answer it."""

    run: str

    @property
    def group(self) -> GroupId:
        """Its answers together."""
        return GroupId(self.partition, self.offset)

    def rollout(self, index: int) -> RolloutId:
        """The name of one answer, counted from 0."""
        return RolloutId(self.run, self.partition, self.offset, index)


@dataclass(frozen=True, slots=True)
class SentFeedback(Sent):
    """A judgement."""

    feedback: Feedback


class Client:
    """Holds a connection open. Safe to use from several threads.

    Args:
        bootstrap: brokers, ``host:port`` separated by commas.
        run: name of the run.
        options: further arguments of kafka-python's clients, such as ``security_protocol``.

    Raises:
        BrokerError: Kafka cannot be reached.
        ConfigError: an option is none of kafka-python's.
    """

    def __init__(self, bootstrap: str, run: str, options: Mapping[str, str | int | bool] | None = None) -> None:
        from kafka.errors import KafkaError

        # As they are: a program may hold a password, which a configuration, being written to files, may not.
        self._kafka = KafkaConfig(bootstrap=bootstrap).model_copy(update={"client": dict(options or {})})
        self._run, self._topics = run, Topics(run)
        try:
            self._producer = connect_producer(self._kafka.producer_options())
        except KafkaError as error:
            raise unreachable(self._kafka, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._producer.close()

    def send_prompt(
        self,
        prompt: str | Sequence[Message] | Prompt,
        *,
        task: str = "default",
        reward: RewardSpec | None = None,
        group_size: int | None = None,
        traceparent: str | None = None,
    ) -> SentPrompt:
        """Has a prompt answered by the rollout pipeline, when the learner admits it.

        Args:
            prompt: what a user says, a conversation, or a whole record, for which the other arguments do not count.
            task: for grouping figures.
            reward: null for ``feedback``: people or programs judge the answers.
            group_size: answers to it; null for the pipeline's number.
            traceparent: the span of OpenTelemetry that the prompt's trace goes below; null to begin one.

        Raises:
            RecordError: an argument is not what the record takes.
            BrokerError: Kafka did not acknowledge it.
        """
        if isinstance(prompt, Prompt):
            record = prompt
        else:
            messages = (Message(role="user", content=prompt),) if isinstance(prompt, str) else tuple(prompt)
            fields = {"messages": messages, "task": task, "group_size": group_size}
            record = _checked(Prompt, {**fields, "reward": reward or RewardSpec(name=FEEDBACK_REWARD)})
        key = record.prompt_id.encode() if record.prompt_id else None
        (place,) = self._append(self._topics.prompts, [(key, record.encode())], _trace_headers(traceparent))
        return SentPrompt(self._topics.prompts, *place, self._run)

    def send_feedback(  # noqa: PLR0913 - the record's fields
        self,
        rollout: RolloutId | str,
        kind: FeedbackKind,
        value: float | str | None = None,
        *,
        user: str,
        receipt: str | None = None,
        feedback_id: str | None = None,
    ) -> SentFeedback:
        """Judges an answer.

        Args:
            rollout: its name.
            kind: ``score``, ``thumb``, ``preference``, ``correction`` or ``retract``.
            value: as in :class:`Feedback`.
            user: who judges.
            receipt: that came with the answer; null where the run wants none.
            feedback_id: the judgement's name, so that it counts once however often it is sent; null for a new one.

        Raises:
            RecordError: an argument is not what the record takes.
            BrokerError: Kafka did not acknowledge it.
        """
        name = feedback_id or uuid.uuid4().hex
        fields = {"feedback_id": name, "rollout_id": str(rollout), "kind": kind, "value": value}
        feedback: Feedback = _checked(Feedback, {**fields, "user": user, "receipt": receipt})
        return self.send_all_feedback([Feedback.decode(feedback.encode())])[0]  # times have milliseconds there

    def send_all_feedback(self, judgements: Iterable[Feedback]) -> list[SentFeedback]:
        """Sends many at once, each of which is acknowledged in the end.

        Raises:
            RecordError: one is of another run; nothing was sent.
            BrokerError: Kafka did not acknowledge all of them.
        """
        given = list(judgements)
        for each in given:
            if each.rollout.run != self._run:
                raise RecordError("bad_record", f"rollout {each.rollout_id} is of another run than {self._run!r}")
        places = self._append(self._topics.feedback, [(each.rollout_id.encode(), each.encode()) for each in given])
        return [
            SentFeedback(self._topics.feedback, *place, feedback)
            for place, feedback in zip(places, given, strict=True)
        ]  # fmt: skip

    def _append(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes]],
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> list[tuple[int, int]]:
        from kafka.errors import KafkaError

        try:
            sent = [self._producer.send(topic, value, key=key, headers=list(headers)) for key, value in records]
            places = [future.get(timeout=self._kafka.request_timeout_s) for future in sent]
        except KafkaError as error:
            message = f"Kafka at {self._kafka.bootstrap} did not acknowledge a record of {topic}: {error!r}; try again"
            raise BrokerError(message) from error
        return [(place.partition, place.offset) for place in places]


def _trace_headers(traceparent: str | None) -> list[tuple[str, bytes]]:
    if traceparent is None:
        return []
    try:
        TraceContext.parse(traceparent)
    except ValueError as error:
        raise RecordError("bad_record", str(error)) from error
    return [(HEADER, traceparent.encode())]


def _checked(kind: Any, fields: Mapping[str, Any]) -> Any:
    try:
        return kind(**fields)
    except ValidationError as error:
        raise RecordError("bad_record", first_fault(error)) from error
