"""Questions about topics, of brokers that come and go. What is asked of a real one is in tests/integration."""

import pytest
from kafka.errors import KafkaConnectionError, TopicAuthorizationFailedError

from pipelines.local import topics
from schemas.config import KafkaConfig
from schemas.errors import BrokerError
from schemas.topics import MIN_IN_SYNC, Topics


class Admin:
    """A client for administration that answers with these, one a question; exceptions are raised."""

    shape = (3, 3, {})
    """Partitions, copies and settings of every topic."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.closed = 0
        self.timeouts_s = []

    def connected(self, timeout_s):
        self.timeouts_s.append(timeout_s)
        return self

    def list_topics(self):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def describe_topics(self, names):
        partitions, copies, _ = self.shape
        return [{"name": name, "partitions": [{"replica_nodes": [*range(copies)]}] * partitions} for name in names]

    def describe_configs(self, resources, config_filter):
        spec = Topics("demo").specs(3, 3)[0]
        settings = {"cleanup.policy": "delete", **spec.settings, **self.shape[2]}
        return {"topic": {each.name: {key: {"value": value} for key, value in settings.items()} for each in resources}}

    def wait_for_topics(self, names):
        pass

    def close(self):
        self.closed += 1


@pytest.fixture
def asked(monkeypatch):
    def with_answers(*answers):
        admin = Admin(*answers)
        monkeypatch.setattr(topics, "connect", lambda kafka, timeout_s: admin.connected(timeout_s))
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
    assert admin.closed > 1
    assert admin.timeouts_s == sorted(admin.timeouts_s, reverse=True)
    assert admin.timeouts_s[-1] < admin.timeouts_s[0] <= 0.5, "each attempt has what the others left"


def test_a_refusal_is_no_reason_to_ask_again(asked):
    asked(TopicAuthorizationFailedError("demo.prompts"), ["demo.prompts"])
    with pytest.raises(BrokerError, match="does not show its topic demo"):
        topics.topic_partitions(KafkaConfig(), "demo.prompts")


COMMAND = "kafka-configs.sh --alter --topic demo.prompts --add-config min.insync.replicas=2"


@pytest.mark.parametrize(
    ("shape", "told", "not_told"),
    [
        ((3, 3, {MIN_IN_SYNC: "1"}), (COMMAND, "--bootstrap-server", "records stay"), ("delete", "copies of")),
        ((3, 1, {MIN_IN_SYNC: "1"}), ("copies of a partition: 1, expected 3", "kafka.replication"), ("kafka-configs",)),
        ((3, 2, {MIN_IN_SYNC: "1"}), ("copies of a partition: 2, expected 3", COMMAND, "for the rest"), ()),
        ((2, 3, {MIN_IN_SYNC: "1"}), ("2 partitions, expected 3", COMMAND, "delete them"), ()),
        ((3, 3, {"retention.ms": "1000"}), ("retention.ms is 1000, expected -1", "delete them"), ("kafka-configs",)),
    ],
)
def test_what_is_wrong_with_topics_is_told_with_what_mends_it(asked, shape, told, not_told):
    admin = asked(["demo.prompts"])
    admin.shape = shape
    with pytest.raises(BrokerError) as raised:
        topics._check(Topics("demo").specs(3, 3)[:1], admin)
    assert [part for part in told if part not in str(raised.value)] == []
    assert [part for part in not_told if part in str(raised.value)] == []


@pytest.mark.parametrize("shape", [(3, 3, {}), (3, 5, {MIN_IN_SYNC: "3"})])
def test_topics_with_more_copies_than_asked_for_are_taken(asked, shape):
    admin = asked()
    admin.shape = shape
    topics._check(Topics("demo").specs(3, 3)[:1], admin)


def test_a_topic_that_is_not_there_is_named(asked):
    asked(["other"])
    with pytest.raises(BrokerError, match="; create it with asyncflow topics"):
        topics.topic_partitions(KafkaConfig(), "demo.prompts")
