"""Who may do what at the broker: one principal for each role, and the least that its process needs.

    ROLES ──► grants(topics, shares) ──► asyncflow topics --acls (at the broker, or for other tools)
                                    └──► docs/reference/access.md

What is here is what the code does: a test has a broker with an authorizer compare every line, allowed and denied, and
runs the processes under these principals. Read and Write bring Describe with them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from schemas.topics import FederationTopics, Topics

RoleName = Literal[
    "operator", "producer", "curriculum", "worker", "rollout", "learner", "join-feedback", "gateway", "rater",
    "simulator", "evaluator", "scorer", "reader",
]  # fmt: skip
Operation = Literal["Read", "Write", "Create", "Describe", "DescribeConfigs"]
Kind = Literal["topic", "group", "transactionalId"]
TopicName = Literal[
    "prompts", "trajectories", "pending", "feedback", "exchanges", "outcomes", "weights", "admission", "workers",
    "ledger", "evals", "dead_letters",
]  # fmt: skip

FederationRoleName = Literal["coordinator", "site", "follower", "observer"]
FederationTopicName = Literal["sites", "updates", "rounds", "weights"]

EVERY: Final[tuple[TopicName, ...]] = get_args(TopicName)
EVERY_FEDERATED: Final[tuple[FederationTopicName, ...]] = get_args(FederationTopicName)


@dataclass(frozen=True, slots=True)
class Role:
    """What one kind of process does at the broker.

    Topics by their attributes of :class:`schemas.topics.Topics`, or of :class:`schemas.topics.FederationTopics`.
    """

    about: str
    """Who has it."""
    reads: tuple[TopicName | FederationTopicName, ...] = ()
    writes: tuple[TopicName | FederationTopicName, ...] = ()
    creates: bool = False
    """All topics of the run, or of the federation."""
    compares: bool = False
    """Looks at the start whether all topics are as they should be."""
    group: Literal["rollout_group", "join_group"] | None = None
    """Under which it commits how far it came."""
    sees_group: Literal["rollout_group"] | None = None
    """How far that came; nothing is committed."""
    transactions: Literal["rollout", "join_id", "learner_id", "curriculum_id", "coordinator_id"] | None = None
    """Its transactional id; ``rollout`` has one for each share."""


ROLES: Final[Mapping[RoleName, Role]] = {
    "operator": Role("who creates topics: `asyncflow topics`, `doctor`, `--dry-run`", creates=True, compares=True),
    "producer": Role("programs that send prompts: `submit`, `pipelines.client.Client`", writes=("prompts",)),
    "curriculum": Role(
        "`asyncflow curriculum`",
        reads=("prompts", "trajectories", "admission", "dead_letters"),
        writes=("prompts",),
        transactions="curriculum_id",
    ),
    "worker": Role("`asyncflow worker`", reads=("weights",), writes=("workers",)),
    "rollout": Role(
        "`asyncflow rollout`",
        reads=("prompts", "admission", "workers"),
        writes=("trajectories", "pending", "dead_letters"),
        compares=True,
        group="rollout_group",
        transactions="rollout",
    ),
    "learner": Role(
        "`asyncflow learn`",
        reads=("prompts", "trajectories", "pending", "dead_letters", "weights", "admission", "ledger"),
        writes=("ledger", "weights", "admission", "dead_letters"),
        transactions="learner_id",
    ),
    "join-feedback": Role(
        "`asyncflow join-feedback`",
        reads=("pending", "feedback", "outcomes"),
        writes=("trajectories", "outcomes", "dead_letters"),
        compares=True,
        group="join_group",
        transactions="join_id",
    ),
    "gateway": Role(
        "`asyncflow gateway`",
        reads=("weights", "workers", "outcomes", "ledger"),
        writes=("exchanges", "pending", "feedback"),
    ),
    "rater": Role(
        "programs that judge answers: `feedback`, `pipelines.client.Client`",
        writes=("feedback",),
    ),
    "simulator": Role("`asyncflow simulate-raters`", reads=("pending",), writes=("feedback",)),
    "evaluator": Role("`asyncflow evaluate`", reads=("weights", "ledger", "workers", "evals"), writes=("evals",)),
    "scorer": Role("`asyncflow learn-scorer`", reads=("trajectories",)),
    "reader": Role(
        "who looks and takes out: `audit`, `top`, `report`, `export`, `replay`, `eval`",
        reads=EVERY,
        sees_group="rollout_group",
    ),
}


FEDERATION_ROLES: Final[Mapping[FederationRoleName, Role]] = {
    "coordinator": Role(
        "`asyncflow federate`, which creates the topics too",
        reads=EVERY_FEDERATED,
        writes=("rounds", "weights"),
        creates=True,
        compares=True,
        transactions="coordinator_id",
    ),
    "site": Role(
        "`asyncflow learn` of each site, at the federation's broker",
        reads=("rounds", "weights"),
        writes=("sites", "updates"),
    ),
    "follower": Role("workers and evaluators that follow the global versions", reads=("weights",)),
    "observer": Role("who looks: `asyncflow federate --audit`", reads=EVERY_FEDERATED),
}
"""At a federation's broker. Every site has a principal of its own."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a role may do with one thing. Names are literal: nothing is granted by a prefix.

    Example: ``Grant("worker", "topic", "demo.weights", ("Read", "Describe"))``.
    """

    role: str
    """One of :data:`ROLES`, or of :data:`FEDERATION_ROLES`."""
    kind: Kind
    name: str
    operations: tuple[Operation, ...]


def grants(topics: Topics, shares: int, evaluated_by: Topics | None = None) -> list[Grant]:
    """Everything that the roles of a run may do.

    Args:
        topics: of the run.
        shares: of its rollout pipeline, which has a transactional id for each.
        evaluated_by: of ``evaluation.worker_run``, to whose workers the evaluator relays versions; null for none.
    """
    found = [grant for name, role in ROLES.items() for grant in _of(name, role, topics, shares)]
    return found + (_relaying(evaluated_by) if evaluated_by else [])


def federation_grants(topics: FederationTopics) -> list[Grant]:
    """Everything that the roles of a federation may do at its broker."""
    return [grant for name, role in FEDERATION_ROLES.items() for grant in _of(name, role, topics, 0)]


def _of(name: str, role: Role, topics: Topics | FederationTopics, shares: int) -> Iterator[Grant]:
    for topic in EVERY if isinstance(topics, Topics) else EVERY_FEDERATED:
        if operations := _operations(role, topic):
            yield Grant(name, "topic", getattr(topics, topic), operations)
    if role.group:
        yield Grant(name, "group", getattr(topics, role.group), ("Read", "Describe"))
    if role.sees_group:
        yield Grant(name, "group", getattr(topics, role.sees_group), ("Describe",))
    for transactional_id in _transactional_ids(role, topics, shares):
        yield Grant(name, "transactionalId", transactional_id, ("Write", "Describe"))


def _operations(role: Role, topic: TopicName | FederationTopicName) -> tuple[Operation, ...]:
    uses = topic in (*role.reads, *role.writes) or role.creates or role.compares
    wanted: dict[Operation, bool] = {
        "Read": topic in role.reads,
        "Write": topic in role.writes,
        "Create": role.creates,
        "Describe": uses,
        "DescribeConfigs": role.compares,
    }
    return tuple(operation for operation, wants in wanted.items() if wants)


def _transactional_ids(role: Role, topics: Topics | FederationTopics, shares: int) -> list[str]:
    if role.transactions is None:
        return []
    if role.transactions == "rollout" and isinstance(topics, Topics):
        return [topics.rollout_id(share) for share in range(shares)]
    return [getattr(topics, role.transactions)]


def _relaying(topics: Topics) -> list[Grant]:
    """What the evaluator does with the topics of workers that serve evaluations alone: it makes and checks them too."""
    role = Role("", reads=("weights", "ledger", "workers"), writes=("weights",), creates=True, compares=True)
    return list(_of("evaluator", role, topics, 0))
