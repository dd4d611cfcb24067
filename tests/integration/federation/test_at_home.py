"""What a site keeps at home: a federation's broker with an authorizer, and a secret in prompts and answers."""

import logging
import threading
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pipelines.acls import create_acls
from pipelines.local.topics import create_topics
from schemas.config import KafkaConfig, validate
from schemas.federating import FederationConfig
from schemas.prompts import Prompt, RewardSpec
from tests.support.knocking import Knocker
from tests.support.locked_broker import ADMIN, LockedBroker
from tests.support.trajectories import Rollouts, read_all
from trainers.federation.coordinator import run

logging.getLogger("kafka").setLevel(logging.ERROR)
NAME, SITE = "vault", "north"
COORDINATOR, NORTH = f"{NAME}-coordinator", f"{NAME}-{SITE}"
CANARY = f"canary-{uuid4().hex}"
OPERATIONS = ("Read", "Write", "Create", "Describe", "DescribeConfigs", "Delete", "AlterConfigs")


@pytest.fixture
def shared(tmp_path):
    """The federation's broker, which runs, and who may connect how."""
    words = {user: f"password-{uuid4().hex}" for user in (ADMIN, COORDINATOR, NORTH)}
    for user, word in words.items():
        (tmp_path / user).write_text(word)
    with LockedBroker(tmp_path / "kafka", words) as broker:
        yield lambda user: KafkaConfig(
            bootstrap=broker.bootstrap, client=broker.scram(user, f"{{file:{tmp_path / user}}}")
        )


@pytest.fixture
def federation(shared, model_dir, tmp_path):
    """Of one site, with its topics and rights."""
    (tmp_path / "key").write_text("the key of north")
    config = FederationConfig.model_validate({
        "name": NAME, "kafka": shared(COORDINATOR).model_dump(), "store": str(tmp_path / "store"), "rounds": 2,
        "model": str(model_dir), "sites": {SITE: {"key": f"{{file:{tmp_path / 'key'}}}"}}, "keep_updates": True,
        "selection": {"steps": 2},
    })  # fmt: skip
    privileged = config.model_copy(update={"kafka": shared(ADMIN)})
    create_topics(privileged, 60)
    create_acls(privileged, 60)
    return config


class Talkative(Rollouts):
    """Writes the secret into every answer."""

    def make_group(self, *arguments, **more):
        return [replace(sample, response_text=CANARY, prompt_id=CANARY) for sample in
                super().make_group(*arguments, **more)]  # fmt: skip


def test_what_was_asked_and_answered_never_leaves_the_site(make_config, federation, shared, model_dir, nursery):
    directory = Path(federation.store).parent
    config = site_of(make_config, federation, shared, directory)
    write_secret_prompts(config)
    leading = threading.Thread(target=run, args=[federation], daemon=True)
    leading.start()
    with Talkative(config, model_dir):
        nursery.start(config, directory)
        assert nursery.wait() == 0, nursery.said()
    leading.join(60)
    assert not leading.is_alive()
    told, kept = everything(shared(ADMIN)), [path for path in Path(federation.store).rglob("*") if path.is_file()]
    topics = {spec.name for spec in federation.topics.specs()}
    assert {topic for topic, _ in told if not topic.startswith("__")} == topics, "every topic, and no other"
    assert [path for path in kept if "updates" in path.parts]
    for where, value in [*told, *((str(path), path.read_bytes()) for path in kept)]:
        assert CANARY.encode() not in value, where
        assert config.name.encode() not in value, where
    at_home = [record.value for topic in (config.topics.prompts, config.topics.trajectories)
               for record in read_all(config, topic)]  # fmt: skip
    assert at_home
    assert all(CANARY.encode() in value for value in at_home), "the search finds what is there"


def test_the_site_s_principal_can_write_nothing_else(federation, shared):
    topics = federation.topics
    with Knocker(shared(NORTH)) as knocker:
        own = [spec.name for spec in topics.specs()]
        others = ["north.trajectories", f"{NAME}.trajectories", "anything"]
        may = {operation: {name for name, lets in knocker.topics(operation, [*own, *others]).items() if lets}
               for operation in OPERATIONS}  # fmt: skip
        assert may == {
            "Read": {topics.rounds, topics.weights}, "Write": {topics.sites, topics.updates}, "Create": set(),
            "Describe": set(own), "DescribeConfigs": set(), "Delete": set(), "AlterConfigs": set(),
        }  # fmt: skip
        assert knocker.sees() == set(own)
        assert not knocker.administers()
        assert not knocker.transactional_id("Write", topics.coordinator_id)


def site_of(make_config, federation, shared, tmp_path):
    tree = make_config(steps=4, max_staleness=1).model_dump()
    tree["federation"] = {"name": NAME, "site": SITE, "kafka": shared(NORTH).model_dump(), "store": federation.store,
                          "key": f"{{file:{tmp_path / 'key'}}}", "heartbeat_s": 0.5}  # fmt: skip
    return validate(tree, "test")


def write_secret_prompts(config):
    producer = KafkaProducer(**config.kafka.producer_options())
    for index in range(60):
        prompt = Prompt(token_ids=(7, 8, 9, 10 + index % 5), prompt_id=CANARY, reward=RewardSpec(name="exact_match"))
        producer.send(config.topics.prompts, prompt.encode(), partition=index % config.kafka.partitions)
    producer.flush()
    producer.close()


def everything(kafka):
    """Topic and bytes of every record at a broker: key, value and headers; a topic without any has empty ones."""
    consumer = KafkaConsumer(**kafka.consumer_options())
    found = []
    for topic in consumer.topics():
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        found.append((topic, b""))
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for record in (each for batch in consumer.poll(timeout_ms=100).values() for each in batch):
                headers = b"".join(name.encode() + value for name, value in record.headers)
                found.append((topic, (record.key or b"") + (record.value or b"") + headers))
    consumer.close()
    return found
