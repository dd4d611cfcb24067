"""Questions about topics, of brokers that come and go. What is asked of a real one is in tests/integration."""

import pytest
from kafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from pipelines.local import topics
from schemas.config import KafkaConfig
from schemas.errors import BrokerError


class Admin:
    """A client for administration that answers with these, one a question; exceptions are raised."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.closed = 0

    def list_topics(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def describe_topics(self, names):
        return [{"partitions": [0, 1, 2]} for _ in names]

    def close(self):
        self.closed += 1


@pytest.fixture
def asked(monkeypatch):
    def with_answers(*answers):
        admin = Admin(*answers)
        monkeypatch.setattr(topics, "connect", lambda kafka, timeout_s: admin)
        return admin

    return with_answers


def test_another_broker_is_asked_when_the_one_that_was_asked_has_gone(asked):
    admin = asked(KafkaConnectionError("111 ECONNREFUSED"), ["demo.prompts"])
    assert topics.topic_partitions(KafkaConfig(), "demo.prompts") == 3
    assert admin.closed == 2


def test_one_that_stays_away_is_told_in_words(asked):
    admin = asked(*[KafkaConnectionError("111 ECONNREFUSED")] * 50)
    with pytest.raises(BrokerError, match=r"^Kafka at 127.0.0.1:9092 does not show its topic demo.prompts: .*ECONN"):
        topics.topic_partitions(KafkaConfig(), "demo.prompts", timeout_s=0.5)
    assert admin.closed == 50 - len(admin.answers)


def test_a_refusal_is_no_reason_to_ask_again(asked):
    asked(TopicAuthorizationFailedError("demo.prompts"), ["demo.prompts"])
    with pytest.raises(BrokerError, match="does not show its topic demo"):
        topics.topic_partitions(KafkaConfig(), "demo.prompts")


def test_a_topic_that_is_not_there_is_named(asked):
    asked(["other"])
    with pytest.raises(BrokerError, match="; create it with asyncflow topics"):
        topics.topic_partitions(KafkaConfig(), "demo.prompts")
