"""What happens to a cluster of hosts: processes are killed, links are cut, slowed and made lossy.

A fault is as those of ``asyncflow drill`` (:mod:`pipelines.drill.faults`), on a scene whose stack is a
:class:`tests.support.cluster.Cluster`. ``cut kafka-1`` takes a host away from everybody, whoever watches included;
``cut kafka-1 beam`` only one link, so that brokers go on to agree and no leader moves.

None strikes before the brokers have got over the one before: all three serve, and all copies of all partitions agree.
With fewer nothing could be promised.
"""

from datetime import UTC, datetime
from functools import partial

from kafka.errors import KafkaError

from pipelines.drill.faults import kill
from pipelines.local.stack import LEARNER, PRISM, ROLLOUT
from pipelines.local.topics import connect
from schemas.errors import BrokerError
from tests.support.cluster import BEAM, BROKERS, POOL, RANKS, WORKERS

_LONG_S = 20.0
"""Longer than the brokers need to agree that one of them has gone."""
_SHORT_S = 10.0
_DELAY_S, _RATE, _LOSS = 0.05, 2e6, 0.05
_LOOK_S, _LOOKS = 2.0, 60
_IN_USE_S = 5.0
_INTERNAL = ("__consumer_offsets", "__transaction_state")


def when_sound(fault, scene, blow):
    """A fault that waits until every broker serves and every partition has all its copies."""
    for broker in BROKERS:
        yield from scene.when_up(broker)
    for _ in range(_LOOKS):
        if is_whole(scene):
            yield from fault(scene, blow)
            return
        yield from scene.pause(_LOOK_S)
    blow.witness(False, f"the brokers did not get over what was before within {_LOOKS * _LOOK_S:g} s")


def is_whole(scene):
    """Whether all copies of all partitions of the run, and of the transactions' state, agree."""
    try:
        admin = connect(scene.config.kafka, _LOOK_S)
    except BrokerError:
        return False
    try:
        topics = [spec.name for spec in scene.config.topics.specs(1)] + list(_INTERNAL)
        partitions = [each for topic in admin.describe_topics(topics) for each in topic["partitions"]]
        return all(len(each["isr_nodes"]) == len(BROKERS) for each in partitions)
    except KafkaError:
        return False
    finally:
        admin.close()


def hurt(how, where, seconds, scene, blow):
    """The links of a host, or the one between two, are hurt for some seconds and healed."""
    hosts = scene.stack.hosts
    before = hosts.counts(*where)
    yield from scene.until(lambda: hosts.counts(*where) != before, _IN_USE_S)
    if hosts.counts(*where) == before:
        blow.not_possible = "nobody uses this link now"  # such as one to a broker that leads nothing
        return
    blow.began_at, before = datetime.now(UTC), hosts.counts(*where)
    try:
        how(hosts, where)
        yield from scene.pause(seconds)
        if how is not slow:
            yield from scene.until(lambda: hosts.counts(*where)["lost"] > before["lost"], seconds)
        after = hosts.counts(*where)
    finally:  # also if the drill ends meanwhile: the log has to be read afterwards
        hosts.heal(*where)
    lost, passed = (after[name] - before[name] for name in ("lost", "passed"))
    blow.witness(passed > 0 if how is slow else lost > 0, f"{lost} packets were lost and {passed} passed")
    blow.over_at = datetime.now(UTC)


def cut(hosts, where):
    hosts.cut(*where)


def slow(hosts, where):
    hosts.slow(*where, delay_s=_DELAY_S, rate=_RATE)


def lossy(hosts, where):
    hosts.lossy(*where, share=_LOSS)


def _hurt(how, seconds, *where):
    return {" ".join((how.__name__, *where)): partial(hurt, how, where, seconds)}


def _all():
    faults = {f"kill {name}": partial(kill, name) for name in (*BROKERS, *WORKERS, *RANKS, PRISM, ROLLOUT, POOL)}
    for broker in BROKERS:
        faults |= _hurt(cut, _LONG_S, broker) | _hurt(slow, _SHORT_S, broker) | _hurt(lossy, _SHORT_S, broker)
        faults |= _hurt(cut, _SHORT_S, broker, BEAM) | _hurt(cut, _SHORT_S, broker, LEARNER)
    for host in (*WORKERS, PRISM, BEAM, LEARNER):
        faults |= _hurt(cut, _SHORT_S, host) | _hurt(lossy, _SHORT_S, host)
    faults |= _hurt(cut, _SHORT_S, *RANKS) | _hurt(slow, _SHORT_S, *RANKS) | _hurt(cut, _SHORT_S, PRISM, BEAM)
    return {name: partial(when_sound, fault) for name, fault in faults.items()}


HOST_FAULTS = _all()


def broker_of(fault):
    """The broker that a fault is about; None if it is about none."""
    return next((word for word in fault.split() if word in BROKERS), None)
