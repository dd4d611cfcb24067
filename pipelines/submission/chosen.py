"""The options that a runner gets where nobody gave them: streaming that survives, and one client of engines a machine.

All of it can be overridden; what does not work then is told by :mod:`pipelines.submission.checks`.
"""

from typing import Final, NamedTuple

from schemas.config import RunConfig

_FOREVER_S: Final = 10 * 365 * 86_400
_CHECKPOINTING_MS: Final = 10_000
_CHECKPOINT_TIMEOUT_MS: Final = 600_000
"""Flink's own."""
_FACTOR: Final = 2
"""By how much time-outs are longer than what they wait for."""
_STATEFUL_BUNDLE_MS: Final = 100
"""What a judgement may wait for its bundle; a commit takes some 10 ms."""
UNDIVIDED: Final = "prism_disable_sdf_split"
"""Prism 2.77 divides a bundle that is slow, and then forgets which of the keys that it moves are worked on still: two
bundles of one key at a time, of which the later one overwrites the state of the other."""
ONE_PROCESS: Final = "no_use_multiple_sdk_containers"
"""Dataflow starts a process for each core otherwise."""


class Chosen(NamedTuple):
    """An option. Example: ``Chosen("2", "rollout.shares")``."""

    value: str
    why: str
    """A few words."""


def chosen_options(pipeline: str, runner: str, config: RunConfig) -> dict[str, Chosen]:
    """All that a pipeline gets on a runner, by name.

    Args:
        pipeline: ``rollout`` or ``join-feedback``.
        runner: a value of ``pipelines.submission.submission.RUNNERS``.
        config: of the run.
    """
    options = dict(_JOB_SERVICE) if runner in ("prism", "flink", "portable") else {}
    if runner in ("prism", "portable") and pipeline == "join-feedback":
        options["experiments"] = Chosen(UNDIVIDED, "one bundle of a key at a time")
    if runner == "flink":
        options |= _flink(pipeline, config)
    if runner == "dataflow":
        options |= _dataflow(pipeline, config)
    return options


_JOB_SERVICE: Final = {
    # Beam takes this for the longest life of a portable pipeline: 300 s unless told otherwise.
    "job_server_timeout": Chosen(str(_FOREVER_S), "as long as the pipeline lives"),
    "sdk_worker_parallelism": Chosen("1", "one process a machine holds the pools"),
}


def _flink(pipeline: str, config: RunConfig) -> dict[str, Chosen]:
    timeout_ms = max(_CHECKPOINT_TIMEOUT_MS, round(1000 * _FACTOR * longest_bundle_s(pipeline, config)))
    return {
        "parallelism": Chosen(str(places(pipeline, config)), _PLACES[pipeline]),
        "checkpointing_interval": Chosen(str(_CHECKPOINTING_MS), "without checkpoints Flink restarts nothing"),
        "checkpoint_timeout_millis": Chosen(str(timeout_ms), "longer than a bundle takes"),
        **_BUNDLES[pipeline],
    }


_BUNDLES: Final = {
    "rollout": {"max_bundle_size": Chosen("1", "a bundle is one batch, and is committed when it ends")},
    "join-feedback": {"max_bundle_time_mills": Chosen(str(_STATEFUL_BUNDLE_MS), "decisions wait for their bundle")},
}


def _dataflow(pipeline: str, config: RunConfig) -> dict[str, Chosen]:
    machines = Chosen(str(places(pipeline, config)), _PLACES[pipeline])
    return {
        "experiments": Chosen(ONE_PROCESS, "one process a machine holds the pools"),
        "autoscaling_algorithm": Chosen("NONE", "shares do not divide further"),
        "num_workers": machines,
        "max_num_workers": machines,
    }


_PLACES: Final = {"rollout": "rollout.shares", "join-feedback": "reader and writer of one process"}


def places(pipeline: str, config: RunConfig) -> int:
    """On how many machines a pipeline's work can be divided."""
    return config.rollout.shares if pipeline == "rollout" else 1


def longest_bundle_s(pipeline: str, config: RunConfig) -> float:
    """How long a bundle stays open at most, unless many groups' rewards hang at once.

    Rollout: a group whose rewards all hang, first together and then each alone; answers are waited for by the pool, in
    no bundle. Feedback: a transaction.
    """
    if pipeline == "rollout":
        return (1 + config.rollout.group_size) * config.rewards.timeout_s
    return config.kafka.transaction_timeout_s
