"""The pool of one share without Beam, against a real broker: bounds, redelivery, commit and fencing."""

import json
import threading
import time

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from schemas.config import ModelConfig, RolloutConfig
from schemas.errors import FencedError, StateError
from schemas.identity import GroupId
from tests.pipeline.rollout_process import wait_for
from transforms import metrics
from transforms.assemble import assemble
from transforms.generation.outcome import OutputRecord, group_of
from transforms.rewards import registry

registry.load()
PROMPT = json.dumps({"token_ids": [7], "reward": {"name": "last_number", "args": {"answer": "5"}}}).encode()


@pytest.fixture
def config(run_config, model, engine):
    rollout = RolloutConfig(workers=(engine.url,), group_size=2, max_in_flight=4)
    return run_config.model_copy(update={"model": ModelConfig(path=model), "rollout": rollout})


def take(pool, count):
    """So many outcomes."""
    taken = []
    wait_for(lambda: taken.extend(pool.take(count - len(taken))) or len(taken) >= count)
    return [finished.outcome for finished in taken]


def test_at_most_four_times_max_in_flight_waits_for_its_commit(open_pool, config, topics, engine):
    topics.send_prompts([PROMPT] * 60)
    topics.admit(100, 100)
    pool = open_pool()
    outcomes = take(pool, 16)
    time.sleep(0.5)
    assert pool.take(100) == []
    assert len(engine.requests) == 16
    assert engine.most_at_once <= 4
    pool.commits.commit(assemble(config, outcomes[:6]))
    take(pool, 6)
    time.sleep(0.3)
    assert len(engine.requests) == 22, "what is committed makes room"


@pytest.mark.parametrize("case", [(2, 100, 2, "no_prompts"), (40, 2, 4, "admission"), (40, 100, 16, "back_pressure")])
def test_empty_slots_say_why(open_pool, config, topics, engine, case):
    prompts, admitted, asked, reason = case
    topics.send_prompts([PROMPT] * prompts)
    topics.admit(admitted, admitted)
    pool = open_pool()
    wait_for(lambda: len(engine.requests) == asked, 60)
    before = metrics.SLOT_SECONDS.labels("0", reason)._value.get()
    wait_for(lambda: pool.idle_s() > 1.0, 60)
    pool.offer_again()  # nothing is committed; a look at the pool adds the time up
    pool.commits.commit(assemble(config, take(pool, 1)))
    assert metrics.SLOT_SECONDS.labels("0", reason)._value.get() - before > 0.8


def test_a_look_waits_for_the_first_outcome_and_no_longer(open_pool, config, topics, engine):
    topics.admit(100, 100)
    pool = open_pool()
    assert seconds_of(lambda: pool.take(1, 0.3))[0] > 0.25
    topics.send_prompts([PROMPT])
    waited_s, taken = seconds_of(lambda: pool.take(1, 20))
    assert len(taken) == 1
    assert waited_s < 10
    threading.Timer(0.2, pool.fail, [RuntimeError("broken")]).start()
    with pytest.raises(RuntimeError, match="broken"):
        pool.take(1, 20)


def seconds_of(call):
    """How long a call took, and what it gave."""
    started = time.monotonic()
    found = call()
    return time.monotonic() - started, found


def test_a_new_reader_gets_what_is_not_committed_in_order_of_completion(open_pool, config, topics):
    topics.send_prompts([PROMPT] * 10)
    topics.admit(100, 100)
    pool = open_pool()
    first = take(pool, 10)
    pool.commits.commit(assemble(config, first[:3]))
    assert pool.take(100) == []
    pool.offer_again()
    again = take(pool, 7)
    assert [group_of(outcome) for outcome in again] == [group_of(outcome) for outcome in first[3:]]


def test_a_bundle_that_is_tried_again_is_written_once(open_pool, config, topics):
    topics.send_prompts([PROMPT] * 6)
    topics.admit(100, 100)
    pool = open_pool()
    records = assemble(config, take(pool, 6))
    pool.commits.commit(records)
    pool.commits.commit(records)
    assert set(topics.outcomes().values()) == {1}
    assert len(topics.outcomes()) == 6


def test_a_record_of_committed_and_new_groups_is_refused(open_pool, config, topics):
    topics.send_prompts([PROMPT] * 6)
    topics.admit(100, 100)
    pool = open_pool()
    outcomes = take(pool, 6)
    pool.commits.commit(assemble(config, outcomes[:3]))
    with pytest.raises(StateError, match="mixes committed and new groups"):
        pool.commits.commit(assemble(config, outcomes))


def test_the_next_pool_goes_on_with_what_was_not_committed(open_pool, config, topics, engine):
    topics.send_prompts([PROMPT] * 20)
    topics.admit(100, 100)
    pool = open_pool()
    outcomes = take(pool, 16)
    pool.commits.commit(assemble(config, outcomes[::2]))
    pool.stop()
    committed = {group_of(outcome) for outcome in outcomes[::2]}
    asked = len(engine.requests)
    rest = {group_of(outcome) for outcome in take(open_pool(), 12)}
    assert rest | committed == {GroupId(p, o) for p in (0, 1) for o in range(10)}
    assert not rest & committed
    assert len(engine.requests) == asked + 12


def test_offsets_without_a_prompt_do_not_hold_the_low_water_mark(open_pool, config, topics):
    producer = KafkaProducer(**config.kafka.producer_options("markers"))
    producer.init_transactions()
    for _ in range(3):
        producer.begin_transaction()
        producer.send(config.topics.prompts, PROMPT, partition=0)
        producer.commit_transaction()
    topics.admit(100, 100)
    pool = open_pool()
    pool.commits.commit(assemble(config, take(pool, 3)))
    consumer = KafkaConsumer(**{**config.kafka.consumer_options(), "group_id": config.topics.rollout_group})
    committed = consumer.committed(TopicPartition(config.topics.prompts, 0))
    assert committed == 5, "prompts at 0, 2 and 4, markers at 1, 3 and 5"


def test_what_was_handed_over_is_committed_once_and_not_offered_again(open_pool, config, topics):
    topics.send_prompts([PROMPT] * 12)
    topics.admit(100, 100)
    pool = open_pool()
    outcomes = take(pool, 12)
    records = assemble(config, outcomes[:8])
    pool.hand_over(records)
    pool.hand_over(records)
    pool.offer_again()
    assert [group_of(outcome) for outcome in take(pool, 4)] == [group_of(outcome) for outcome in outcomes[8:]]
    pool.drain()
    assert not pool.is_drained()
    pool.hand_over(assemble(config, outcomes[8:]))
    wait_for(pool.is_drained, 60)
    assert list(topics.outcomes().values()) == [1] * 12


def test_a_commit_that_fails_ends_the_pool(open_pool, config, topics):
    topics.send_prompts([PROMPT] * 8)
    topics.admit(100, 100)
    older = open_pool()
    records = assemble(config, take(older, 4))
    open_pool()
    older.hand_over(records)
    wait_for(lambda: older.error, 60)
    with pytest.raises(FencedError):
        older.take(1)
    with pytest.raises(FencedError):
        older.hand_over(records)


def test_an_older_pool_is_fenced_and_cannot_commit(open_pool, config, topics):
    topics.send_prompts([PROMPT] * 4)
    topics.admit(100, 100)
    older = open_pool()
    records = assemble(config, take(older, 4))
    newer = open_pool()
    with pytest.raises(FencedError, match=r"rollout\.0"):
        older.commits.commit(records)
    with pytest.raises(FencedError):
        older.take(1)
    newer.commits.commit(assemble(config, take(newer, 4)))
    assert set(topics.outcomes().values()) == {1}


def test_what_is_too_large_for_kafka_fails_loudly_and_commits_nothing(open_pool, config, topics):
    topics.send_prompts([PROMPT])
    topics.admit(100, 100)
    pool = open_pool()
    take(pool, 1)
    with pytest.raises(Exception, match="larger"):
        pool.commits.commit([OutputRecord(config.topics.trajectories, b"k", b"x" * (40 << 20), (), (GroupId(0, 0),))])
    assert pool.error is not None
    assert topics.outcomes() == {}
