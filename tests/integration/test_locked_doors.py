"""Locked doors, at a real broker with Kafka's authorizer: what roles may, what nobody may, who gets in at all."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import tomli_w

from pipelines.acls import create_acls, rules_of
from pipelines.cli.main import main
from pipelines.local.topics import connect, create_topics
from schemas.config import KafkaConfig, RolloutConfig, RunConfig
from schemas.errors import BrokerError, ConfigError
from schemas.evaluation import EvaluationConfig
from schemas.roles import ROLES, grants
from schemas.topics import Topics
from tests.pipeline.rollout_process import wait_for
from tests.support.knocking import Knocker
from tests.support.locked_broker import Authority
from tests.support.locks import NAME, STRANGER

SHARES = 2
TOPIC_OPERATIONS = ("Read", "Write", "Create", "Describe", "DescribeConfigs", "Delete", "AlterConfigs")
FOREIGN = Topics("others")
"""Another run at the same broker."""
SERVED = Topics("served")
"""That of the workers which serve evaluations alone."""


@pytest.fixture(scope="module", autouse=True)
def run(locks):
    """The roles have their rights, and each of two runs its topics."""
    config = RunConfig(name=NAME, kafka=locks.kafka("admin"), rollout=RolloutConfig(shares=SHARES),
                       evaluation=EvaluationConfig(worker_run=SERVED.run))  # fmt: skip
    assert create_acls(config, 60).existed == []
    create_topics(config.model_copy(update={"kafka": locks.kafka("operator")}), 60)
    for other in (FOREIGN, SERVED):
        create_topics(config.model_copy(update={"name": other.run}), 60)
    return config


def declared(config, role):
    """What the matrix says of a role: operations by kind and name."""
    return {(each.kind, each.name): set(each.operations)
            for each in grants(config.topics, SHARES, SERVED) if each.role == role}  # fmt: skip


def answered(knocker, config):
    """What the broker says of whoever knocks, about everything that the run has and some that it has not."""
    topics = [spec.name for spec in (*config.topics.specs(2), *FOREIGN.specs(2), *SERVED.specs(2))]
    groups = [config.topics.rollout_group, config.topics.join_group, FOREIGN.rollout_group]
    ids = [config.topics.learner_id, config.topics.join_id, config.topics.curriculum_id, FOREIGN.learner_id,
           *map(config.topics.rollout_id, range(SHARES + 1))]  # fmt: skip
    found = {("topic", name): set() for name in topics}
    for operation in TOPIC_OPERATIONS:
        for name, allowed in knocker.topics(operation, topics).items():
            found["topic", name] |= {operation} if allowed else set()
    for name in groups:
        found["group", name] = {each for each in ("Read", "Describe") if knocker.group(each, name)}
    for name in ids:
        found["transactionalId", name] = {
            each for each in ("Write", "Describe") if knocker.transactional_id(each, name)
        }
    return {place: operations for place, operations in found.items() if operations}


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_what_is_declared_and_nothing_else(role, run, locks):
    with Knocker(locks.kafka(role)) as knocker:
        assert answered(knocker, run) == declared(run, role)
        assert knocker.sees() == {name for kind, name in declared(run, role) if kind == "topic"}
        assert not knocker.administers()


def test_who_has_no_role_gets_nothing(run, locks):
    with Knocker(locks.kafka(STRANGER)) as knocker:
        assert answered(knocker, run) == {}
        assert knocker.sees() == set()
        assert not knocker.administers()


def test_a_certificate_names_a_principal_as_a_password_does(run, locks):
    certified = KafkaConfig(bootstrap=locks.broker.tls_bootstrap, client=locks.broker.certified(f"{NAME}-worker"))
    with Knocker(certified) as knocker:
        assert answered(knocker, run) == declared(run, "worker")


def test_a_token_names_a_principal_as_a_password_does(run, locks, tmp_path):
    token = tmp_path / "token"
    kafka = KafkaConfig(bootstrap=locks.broker.bootstrap, client=locks.broker.bearer(f"{{file:{token}}}"))
    with pytest.raises(ConfigError, match=r"kafka.client.sasl_oauth_token: the file .*token cannot be read"):
        connect(kafka, 10)
    for role in ("worker", "rater"):
        token.write_text(locks.token(f"{NAME}-{role}"))
        with Knocker(kafka) as knocker:
            assert answered(knocker, run) == declared(run, role)


def test_who_cannot_say_who_they_are_gets_nothing(locks, tmp_path):
    """No log-in at all at each door, wrong ones, and one that has run out; all at once: each is given its time."""
    broker, learner = locks.broker, f"{NAME}-learner"
    tls = {"security_protocol": "SSL", "ssl_cafile": str(broker._authority.file)}
    doors = [f"127.0.0.1:{port}" for port in (broker.port, broker.tls_port, broker._controller_port)]
    certificate, key = Authority(tmp_path).issue(learner)
    (tmp_path / "token").write_text(locks.token(learner, lasts_s=-60))
    tried = [
        *((door, client) for door in doors for client in ({}, tls)),
        (broker.bootstrap, broker.scram(learner, "guessed")),
        (broker.bootstrap, broker.scram("nobody", locks.passwords[learner])),
        (broker.bootstrap, broker.bearer(f"{{file:{tmp_path / 'token'}}}")),
        (broker.tls_bootstrap, {**tls, "ssl_certfile": str(certificate), "ssl_keyfile": str(key)}),
    ]  # fmt: skip
    with ThreadPoolExecutor(len(tried)) as pool:
        said = [each.result() for each in [pool.submit(complaint_of, *each) for each in tried]]
    for told, (_, client) in zip(said, tried, strict=True):
        assert "does not go on with them; compare kafka.client" in told, client
    assert "sasl_mechanism = 'SCRAM-SHA-512', sasl_plain_username = 'locked-learner'" in said[len(doors) * 2]
    assert not [told for told in said if "guessed" in told or locks.passwords[learner] in told]


def complaint_of(bootstrap, client):
    """What is said to who could not connect, within some seconds."""
    kafka = KafkaConfig(bootstrap=bootstrap).model_copy(update={"client": client})
    with pytest.raises(BrokerError) as told:
        connect(kafka, 4)
    return str(told.value)


def test_rights_are_given_once_and_those_of_others_are_told(run, locks):
    from kafka.admin import (
        ACL,
        ACLFilter,
        ACLOperation,
        ACLPermissionType,
        ACLResourcePatternType,
        ResourcePattern,
        ResourceType,
    )

    prefixed = ResourcePattern(ResourceType.TOPIC, NAME[:3], ACLResourcePatternType.PREFIXED)
    everybody = ("User:*", "*", ACLOperation.READ, ACLPermissionType.ALLOW, prefixed)
    elsewhere = ("User:x", "*", ACLOperation.READ, ACLPermissionType.ALLOW, ResourcePattern(ResourceType.TOPIC, "x"))
    admin = connect(locks.kafka("admin"), 60)
    try:
        admin.create_acls([ACL(*everybody), ACL(*elsewhere)])
        assert wait_for(lambda: create_acls(run).others, 60) == [f"User:* READ topic {NAME[:3]} (prefixed), from *"]
        again = create_acls(run)
        assert (again.created, set(again.existed)) == ([], set(rules_of(run)))
    finally:
        admin.delete_acls([ACLFilter(*everybody), ACLFilter(*elsewhere)])
        wait_for(lambda: not create_acls(run).others, 60)
        admin.close()


def test_the_verb_gives_rights_and_tells_what_it_did(run, locks, tmp_path, capsys):
    file = tmp_path / "run.toml"
    named = run.model_copy(update={"name": f"{NAME}-again", "evaluation": EvaluationConfig()})
    file.write_text(tomli_w.dumps(named.model_dump(mode="json", exclude_none=True)))
    topics, rules = [spec.name for spec in named.topics.specs(2)], [str(rule) for rule in rules_of(named)]
    assert main(["topics", "--config", str(file), "--acls", "create"]) == 0
    assert capsys.readouterr().out.splitlines() == [*topics, *rules]
    assert f"User:{named.name}-worker Write topic {named.name}.workers" in rules
    assert main(["topics", "--config", str(file), "--acls", "create", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {
        "created": [], "existed": topics, "acls_created": [], "acls_existed": rules, "acls_of_others": [],
    }  # fmt: skip


@pytest.fixture
def reader_file(run, locks, tmp_path):
    """The configuration of whoever may read the run and do nothing else."""
    file = tmp_path / "reader.toml"
    reader = run.model_copy(update={"kafka": locks.kafka("reader")})
    file.write_text(tomli_w.dumps(reader.model_dump(mode="json", exclude_none=True)))
    return str(file)


def test_a_run_elsewhere_is_read_with_its_configuration(reader_file, tmp_path, capsys):
    """Of which nothing is here but a file."""
    assert main(["audit", "--config", reader_file]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    assert main(["top", "--config", reader_file, "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == NAME
    page = tmp_path / "page.html"
    assert main(["report", "--config", reader_file, "--out", str(page), "--json"]) == 0
    assert NAME in page.read_text()


def test_a_name_and_an_address_do_not_open_a_locked_broker(locks, capsys):
    assert main(["audit", NAME, "--bootstrap", locks.broker.bootstrap]) == 2
    assert "compare kafka.client" in capsys.readouterr().err


def test_only_an_administrator_gives_rights(run, locks):
    with pytest.raises(BrokerError, match=r"did not take the ACLs of locked: .*super.users"):
        create_acls(run.model_copy(update={"kafka": locks.kafka("operator")}))


def test_a_role_that_may_not_create_topics_is_told_so(run, locks):
    other = run.model_copy(update={"name": "not-there", "kafka": locks.kafka("rollout")})
    with pytest.raises(BrokerError, match=r"could not create the topics of not-there: .*--acls"):
        create_topics(other)


def test_a_broker_without_an_authorizer_says_so(run_config):
    with pytest.raises(BrokerError, match=r"it has no authorizer: set authorizer.class.name"):
        create_acls(run_config)
