"""The rights of a run's or a federation's roles, for the broker that has them, and for other tools that write there.

schemas.roles ──► rules_of ──► create_acls   at the broker, what is missing
             └──► as_json, as_commands       for a chart, in the form of Strimzi's KafkaUser; for kafka-acls.sh
"""

import json
import shlex
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pipelines.local.topics import connect
from schemas.config import RunConfig
from schemas.errors import BrokerError
from schemas.federating import FederationConfig
from schemas.roles import ROLES, Grant, Kind, Operation, federation_grants, grants
from schemas.topics import Topics

_LOOK_S: Final = 0.05
_OPTIONS: Final[Mapping[Kind, str]] = {
    "topic": "--topic", "group": "--group", "transactionalId": "--transactional-id",
}  # fmt: skip
_RESOURCES: Final[Mapping[Kind, str]] = {
    "topic": "TOPIC", "group": "GROUP", "transactionalId": "TRANSACTIONAL_ID",
}  # fmt: skip
_OPERATIONS: Final[Mapping[Operation, str]] = {
    "Read": "READ", "Write": "WRITE", "Create": "CREATE", "Describe": "DESCRIBE", "DescribeConfigs": "DESCRIBE_CONFIGS",
}  # fmt: skip


Configured = RunConfig | FederationConfig
"""Whose rights they are."""


class Rule(NamedTuple):
    """One right of one principal, from any host: a line of Kafka's."""

    principal: str
    kind: Kind
    name: str
    operation: Operation

    def __str__(self) -> str:
        return f"{self.principal} {self.operation} {self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Acls:
    """What :func:`create_acls` found and did."""

    created: list[Rule]
    existed: list[Rule]
    others: list[str]
    """Rights on the run's topics, groups and transactional ids that no role has, and what is denied there, in words. A
    denial counts for more than a role's right."""


def principal_of(config: RunConfig, role: str) -> str:
    """Who has a role. Example: ``User:demo-learner``."""
    named = {str(name): principal for name, principal in config.kafka.principals.items()}
    return named.get(role, f"User:{config.name}-{role}")


def rules_of(config: Configured) -> list[Rule]:
    """The rights of all roles, each once: two roles may have one principal."""
    rules = (
        Rule(principal, grant.kind, grant.name, operation)
        for principal, grant in _granted(config)
        for operation in grant.operations
    )
    return list(dict.fromkeys(rules))


def _granted(config: Configured) -> Iterator[tuple[str, Grant]]:
    """Each right with whoever has it: of a federation's sites each has the role's."""
    if isinstance(config, RunConfig):
        yield from ((principal_of(config, grant.role), grant) for grant in _grants(config))
        return
    for grant in federation_grants(config.topics):
        yield from ((principal, grant) for principal in federation_principals(config, grant.role))


def federation_principals(config: FederationConfig, role: str) -> list[str]:
    """Who has a role of a federation. Example: ``User:hospitals-coordinator``; of ``site`` one for each site."""
    if role != "site":
        return [f"User:{config.name}-{role}"]
    return [member.principal or f"User:{config.name}-{name}" for name, member in sorted(config.sites.items())]


def _grants(config: RunConfig) -> list[Grant]:
    worker_run = config.evaluation.worker_run
    return grants(config.topics, config.rollout.shares, Topics(worker_run) if worker_run else None)


def create_acls(config: Configured, timeout_s: float = 10.0) -> Acls:
    """Gives the roles what they lack, and finds who else may do what. Nothing is taken from anybody.

    Returns when the broker that was asked goes by the new rights; its controller takes them a moment before.

    Raises:
        BrokerError: Kafka cannot be reached, has no authorizer, or does not let this principal write ACLs.
    """
    from kafka.errors import KafkaError

    admin = connect(config.kafka, timeout_s)
    try:
        there = _read(admin)
        wanted = rules_of(config)
        created = [rule for rule in wanted if _acl(rule) not in there]
        _write(admin, created)
        _await(admin, {_acl(rule) for rule in created}, timeout_s)
    except KafkaError as error:
        raise BrokerError(_refusal(config, error)) from error
    finally:
        admin.close()
    return Acls(created, [rule for rule in wanted if rule not in created], _others(wanted, there))


def _read(admin: Any) -> set[Any]:
    """All of the broker's."""
    from kafka.admin import ACLFilter, ACLOperation, ACLPermissionType, ACLResourcePatternType, ResourcePatternFilter
    from kafka.admin import ResourceType as Resource

    everything = ResourcePatternFilter(Resource.ANY, None, ACLResourcePatternType.ANY)
    found, _ = admin.describe_acls(ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, everything))
    return set(found)


def _acl(rule: Rule) -> Any:
    """As kafka-python has it."""
    from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

    resource = ResourcePattern(ResourceType[_RESOURCES[rule.kind]], rule.name)
    return ACL(rule.principal, "*", ACLOperation[_OPERATIONS[rule.operation]], ACLPermissionType.ALLOW, resource)


def _write(admin: Any, rules: Iterable[Rule]) -> None:
    acls = [_acl(rule) for rule in rules]
    failed = admin.create_acls(acls)["failed"] if acls else []
    if failed:
        raise failed[0]()


def _await(admin: Any, acls: set[Any], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not acls <= _read(admin):
        if time.monotonic() > deadline:
            raise BrokerError(f"Kafka took the ACLs and does not go by them after {timeout_s:g} s; see its log")
        time.sleep(_LOOK_S)


def _refusal(config: Configured, error: Exception) -> str:
    """What to do depends on which of three the broker says."""
    said = f"Kafka at {config.kafka.bootstrap} did not take the ACLs of {config.name}: {error}"
    if type(error).__name__ == "SecurityDisabledError":
        return f"{said}; it has no authorizer: set authorizer.class.name of the broker"
    if type(error).__name__ == "ClusterAuthorizationFailedError":
        return f"{said}; log in as one of its super.users, or as who may Alter and Describe the cluster"
    return said


def _others(wanted: Iterable[Rule], there: Iterable[Any]) -> list[str]:
    """What is allowed on the run's things and not by the matrix, and what is denied. ``super.users`` have no ACL."""
    ours = {_acl(rule) for rule in wanted}
    names = {(acl.resource_pattern.resource_type, acl.resource_pattern.resource_name) for acl in ours}
    foreign = [acl for acl in there if acl not in ours]
    return sorted(_told(acl) for acl in foreign if any(_covers(acl.resource_pattern, *name) for name in names))


def _covers(pattern: Any, kind: Any, name: str) -> bool:
    from kafka.admin import ACLResourcePatternType

    if pattern.resource_type != kind:
        return False
    if pattern.pattern_type == ACLResourcePatternType.PREFIXED:
        return name.startswith(pattern.resource_name)
    return pattern.resource_name in (name, "*")


def _told(acl: Any) -> str:
    from kafka.admin import ACLPermissionType

    verb = "may not " if acl.permission_type == ACLPermissionType.DENY else ""
    pattern = acl.resource_pattern
    kind, how = pattern.resource_type.name.lower(), pattern.pattern_type.name.lower()
    return f"{acl.principal} {verb}{acl.operation.name} {kind} {pattern.resource_name} ({how}), from {acl.host}"


def as_json(config: Configured) -> str:
    """The roles with their principals and ``spec.authorization.acls`` of a KafkaUser; of a federation by principal."""
    if isinstance(config, RunConfig):
        tree: dict[str, Any] = {name: _role(principal_of(config, name), _granted(config)) for name in ROLES}
    else:
        tree = {principal: _role(principal, _granted(config)) for principal, _ in _granted(config)}
    return json.dumps(tree, indent=2)


def _role(principal: str, granted: Iterable[tuple[str, Grant]]) -> dict[str, Any]:
    acls = [
        {"resource": {"type": each.kind, "name": each.name, "patternType": "literal"}, "operations": [*each.operations]}
        for whose, each in granted
        if whose == principal
    ]
    return {"principal": principal, "acls": acls}


def as_commands(config: Configured) -> str:
    """Lines of shell; ``$BOOTSTRAP`` and ``$ADMIN``, a file with an administrator's settings, are the reader's."""
    head = 'kafka-acls.sh --bootstrap-server "$BOOTSTRAP" --command-config "$ADMIN" --add'
    return "\n".join(f"{head} {_arguments(*each)}" for each in _granted(config))


def _arguments(principal: str, grant: Grant) -> str:
    operations = [word for operation in grant.operations for word in ("--operation", operation)]
    return shlex.join(["--allow-principal", principal, *operations, _OPTIONS[grant.kind], grant.name])
