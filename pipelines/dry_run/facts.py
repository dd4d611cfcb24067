"""What is asked of the machine and of Kafka before a plan is made; nothing is started, created or written."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipelines.local.broker import known_jars
from pipelines.local.machine import Gpu, Memory, expected_dtype, free_bytes, gpus, memory
from pipelines.local.placement import visible_gpus
from pipelines.local.ports import is_free
from pipelines.local.prism import known_prism
from pipelines.local.stack import check_model
from pipelines.local.threads import cores
from pipelines.local.topics import inspect_topics
from pipelines.model_facts import ModelFacts, read_model
from pipelines.runs import CONFIG_NAME, is_locked
from schemas.config import RunConfig
from schemas.errors import BrokerError, ConfigError, ModelError
from schemas.receipts import KEY_NAME
from trainers.deepspeed_config import deepspeed_settings
from transforms.modules import is_file

_BROKER_TIMEOUT_S = 3.0


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a plan depends on besides the configuration."""

    cores: int
    memory: Memory
    gpus: tuple[Gpu, ...]
    visible_gpus: tuple[str, ...]
    """Those that a process started here sees, as ``CUDA_VISIBLE_DEVICES`` names them."""
    ranks: int
    """Processes of the learner, by the environment that a launcher sets."""
    dtype: str
    """Of engine and learner, where the configuration says ``auto``."""
    model: ModelFacts | str | None
    """A text says what is wrong with it; null if none was looked for, or it is converted at the first start."""
    topics: dict[str, list[str]] | str | None
    """Of those that exist, what is wrong with them. A text says why Kafka does not tell; null if it was not asked."""
    busy_ports: frozenset[int]
    """Those of the configuration on which something listens."""
    prism: Path | str | None
    """A text says what is wrong; null if it has to be downloaded or built first."""
    jars: Path | None
    """Of Kafka; null if they have to be downloaded first."""
    exists: bool
    """Whether the run has a directory."""
    is_locked: bool
    """Whether another process has it."""
    free_bytes: dict[str, int]
    """Free on the disks of ``weights.root`` and ``learner.checkpoint_root``, by these names; none for a URL."""
    one_disk: bool
    """Whether both lie on one disk."""
    missing: dict[str, str]
    """Files and modules that the configuration names and that are not there, by key; what is wrong with others."""


def probe(config: RunConfig, directory: Path | None, *, asks_broker: bool, wants_model: bool) -> Facts:
    """Looks around.

    Args:
        config: of the run.
        directory: of the run on this machine, below which relative paths lie; null for the working directory.
        asks_broker: whether the run's broker is to be there already.
        wants_model: whether the verb reads the model.
    """
    places = _places(config, directory)
    return Facts(
        cores=cores(),
        memory=memory(),
        gpus=gpus(),
        visible_gpus=visible_gpus(),
        ranks=int(os.environ.get("WORLD_SIZE", "1")),
        dtype=expected_dtype() if config.model.dtype == "auto" else config.model.dtype,
        model=_model(config) if wants_model else None,
        topics=_topics(config) if asks_broker else None,
        busy_ports=frozenset(port for port in ports_of(config).values() if port and not is_free(port)),
        prism=_prism(),
        jars=known_jars(),
        exists=directory is not None and (directory / CONFIG_NAME).exists(),
        is_locked=directory is not None and is_locked(directory),
        free_bytes={name: free_bytes(path) for name, path in places.items()},
        one_disk=len({_device(path) for path in places.values()}) == 1,
        missing=dict(_missing(config, directory)),
    )


def ports_of(config: RunConfig) -> dict[str, int]:
    """The ports that processes of a run listen on, by key; 0 for none or any."""
    return {
        "worker.port": config.worker.port,
        "rollout.metrics_port": config.rollout.metrics_port,
        "learner.metrics_port": config.learner.metrics_port,
        "feedback.metrics_port": config.feedback.metrics_port,
        "gateway.port": config.gateway.port,
        "weights.port": config.weights.port if config.weights.transport == "nccl" else 0,
    }


def _model(config: RunConfig) -> ModelFacts | str | None:
    try:
        return read_model(check_model(config))
    except ModelError as error:
        return str(error)


def _topics(config: RunConfig) -> dict[str, list[str]] | str:
    try:
        return inspect_topics(config, _BROKER_TIMEOUT_S)
    except (BrokerError, ConfigError) as error:
        return str(error)


def _prism() -> Path | str | None:
    try:
        return known_prism()
    except ConfigError as error:
        return str(error)


def _places(config: RunConfig, directory: Path | None) -> dict[str, Path]:
    roots = {"weights.root": config.weights.root, "learner.checkpoint_root": config.learner.checkpoint_root}
    below = directory or Path()
    return {key: below / root for key, root in roots.items() if "://" not in root}


def _missing(config: RunConfig, directory: Path | None) -> Iterator[tuple[str, str]]:
    for key, modules in (
        ("rewards.modules", config.rewards.modules),
        ("rollout.environments.modules", config.rollout.environments.modules),
    ):
        if absent := [name for name in modules if not _is_importable(name)]:
            yield key, f"{', '.join(absent)} cannot be imported here"
    for name, path in config.rollout.environments.data.items():
        if not path.is_dir():
            yield f"rollout.environments.data.{name}", f"{path}: no such directory"
    key_file = config.feedback.key_file
    made = key_file == KEY_NAME and directory is not None  # by the local stack
    if key_file and not made and not ((directory or Path()) / key_file).is_file():
        yield "feedback.key_file", f"{key_file}: no such file"
    if config.learner.deepspeed:
        yield from _deepspeed(config)


def _is_importable(name: str) -> bool:
    if is_file(name):
        return Path(name).is_file()
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _deepspeed(config: RunConfig) -> Iterator[tuple[str, str]]:
    dtype = expected_dtype() if config.model.dtype == "auto" else config.model.dtype
    try:
        deepspeed_settings(config, dtype, int(os.environ.get("WORLD_SIZE", "1")))
    except ConfigError as error:
        yield "learner.deepspeed", str(error)


def _device(path: Path) -> int:
    return next(each for each in (path.absolute(), *path.absolute().parents) if each.exists()).stat().st_dev
