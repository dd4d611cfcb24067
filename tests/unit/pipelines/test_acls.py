"""The matrix of rights: what it grants, that it is whole, and in which forms it is told."""

import json
import shlex
from itertools import pairwise
from typing import get_args

import pytest
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from pipelines.acls import _others, as_commands, as_json, principal_of, rules_of
from pipelines.cli.main import VERBS, main
from schemas.config import RunConfig, validate
from schemas.errors import ConfigError
from schemas.roles import EVERY, ROLES, RoleName, grants
from schemas.topics import Topics

RUN = Topics("demo")


def of(role, **more):
    return {(each.kind, each.name): each.operations for each in grants(RUN, 2, **more) if each.role == role}


def test_a_worker_reads_announcements_and_says_that_it_is_there():
    assert of("worker") == {
        ("topic", "demo.weights"): ("Read", "Describe"),
        ("topic", "demo.workers"): ("Write", "Describe"),
    }


def test_who_judges_answers_reads_none():
    assert of("rater") == {("topic", "demo.feedback"): ("Write", "Describe")}
    assert of("simulator") == {**of("rater"), ("topic", "demo.pending"): ("Read", "Describe")}


def test_every_share_has_its_transactional_id_and_every_topic_its_name():
    held = of("rollout")
    assert {name for kind, name in held if kind == "transactionalId"} == {"demo.rollout.0", "demo.rollout.1"}
    assert {spec.name for spec in RUN.specs(1)} == {getattr(RUN, topic) for topic in EVERY}
    assert {each.name for each in grants(RUN, 2) if each.kind == "topic"} == {spec.name for spec in RUN.specs(1)}


def test_who_decides_what_is_served_and_trained_is_nobody_else():
    writers = {topic: {name for name, role in ROLES.items() if topic in role.writes} for topic in EVERY}
    assert writers["weights"] == writers["ledger"] == writers["admission"] == {"learner"}
    assert writers["trajectories"] == {"rollout", "join-feedback"}
    assert writers["workers"] == {"worker"}
    assert writers["pending"] & writers["feedback"] == {"gateway"}


def test_all_roles_are_there_and_name_verbs_that_are():
    assert tuple(ROLES) == get_args(RoleName)
    named = {word for role in ROLES.values() for word in role.about.replace("`asyncflow ", "`").split("`")[1::2]}
    assert {word for word in named if not word.startswith(("--", "pipelines."))} <= set(VERBS)


def test_an_evaluator_with_workers_of_its_own_also_has_their_run():
    held = of("evaluator", evaluated_by=Topics("judged"))
    assert "Write" in held["topic", "judged.weights"]
    assert "Create" in held["topic", "judged.evals"]
    assert "Write" not in held["topic", "judged.ledger"]


def test_principals_are_named_after_run_and_role_unless_the_configuration_does():
    config = validate({"name": "prod", "kafka": {"principals": {"learner": "User:CN=learner, O=Us"}}}, "test")
    assert principal_of(config, "worker") == "User:prod-worker"
    assert {rule.principal for rule in rules_of(config) if rule.name == "prod.learner"} == {"User:CN=learner, O=Us"}
    for wrong in ({"lerner": "User:x"}, {"learner": "x"}, {"learner": "User:*"}):
        with pytest.raises(ConfigError, match="principals"):
            validate({"kafka": {"principals": wrong}}, "test")


def test_what_is_denied_is_told():
    def denied(name):
        where = ResourcePattern(ResourceType.TOPIC, name)
        return ACL("User:demo-learner", "*", ACLOperation.WRITE, ACLPermissionType.DENY, where)

    there = [denied("demo.ledger"), denied("others.ledger")]
    told = _others(rules_of(validate({"name": "demo"}, "test")), there)
    assert told == ["User:demo-learner may not WRITE topic demo.ledger (literal), from *"]


def test_two_roles_of_one_principal_have_each_rule_once():
    config = validate({"kafka": {"principals": {"rater": "User:app", "gateway": "User:app"}}}, "test")
    rules = rules_of(config)
    assert len(rules) == len(set(rules)) < len(rules_of(RunConfig()))


def test_commands_and_json_say_the_same(capsys):
    config = RunConfig()
    told = json.loads(as_json(config))
    written = {(role["principal"], acl["resource"]["name"], operation)
               for role in told.values() for acl in role["acls"] for operation in acl["operations"]}  # fmt: skip
    commands = [shlex.split(line) for line in as_commands(config).splitlines()]
    said = {(line[line.index("--allow-principal") + 1], line[-1], operation) for line in commands
            for flag, operation in pairwise(line) if flag == "--operation"}  # fmt: skip
    assert written == said == {(rule.principal, rule.name, rule.operation) for rule in rules_of(config)}
    assert main(["topics", "--acls", "json"]) == 0
    assert capsys.readouterr().out == as_json(config) + "\n"
    assert main(["topics", "--acls", "commands"]) == 0
    assert capsys.readouterr().out == as_commands(config) + "\n"
