"""Who answers an evaluation of tasks: the workers of a run, or a worker of its own for a directory.

    run that runs ──the version that its workers serve──────────────────────────────┐
    version of a run ──exported──► directory ─┐                                     ├─► configuration to ask under
    model ────────────────────────────────────┴─► worker, alone, on a free port ────┘

The worker is ended, by its own process id, when the context is left. It needs no broker.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Generic, TypeVar
from urllib.request import urlopen

import tomli_w

from pipelines.local.ports import LOOPBACK, free_ports
from pipelines.local.stack import WORKER, asyncflow_command, check_model, environment_of
from pipelines.local.supervisor import TICK_S, Spec, Supervisor
from pipelines.log import read_topic
from pipelines.runs import CONFIG_NAME
from schemas.config import RunConfig, validate
from schemas.errors import BrokerError, RunError
from schemas.records import now
from schemas.workers import WorkerEntry

_READY_S: Final = 600.0  # compiling for a GPU takes minutes
_LOOK_S: Final = 5.0
_HEARD_S: Final = 30.0
"""A worker that did not announce itself for this long has gone; each does every few seconds."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Served:
    """Somebody who answers."""

    config: RunConfig
    """Under which prompts are asked."""
    version: int
    """No answer is of an older one."""
    tick: Callable[[], None] = lambda: None
    """Raises if the worker that answers has died."""
    exported: int | None = None
    """The version of a run that a worker of its own serves, as its version 1; null where nothing was exported."""


@contextmanager
def model_served(config: RunConfig, model: Path) -> Iterator[Served]:
    """A worker of its own serves a directory for as long as the context lasts.

    Args:
        config: what it says of workers, answers and rewards holds; its model does not.
        model: Hugging Face directory.

    Raises:
        ModelError: it is none.
        ProcessDied: the worker did not come up.
        UserError: it says what the user can mend.
    """
    alone = _alone(config, model)
    check_model(alone)
    with TemporaryDirectory(prefix="asyncflow-eval-") as scratch:
        file = Path(scratch) / CONFIG_NAME
        file.write_text(tomli_w.dumps(alone.model_dump(mode="json", exclude_none=True)))
        command = [*asyncflow_command(), "worker", "--config", str(file)]
        (url,) = alone.rollout.workers
        with Supervisor(Path(scratch) / "logs", Path(scratch)) as supervisor:
            ready = lambda: _serves(url) is not None  # noqa: E731
            supervisor.start(Spec(WORKER, command, environment_of(WORKER), ready=ready, ready_timeout_s=_READY_S))
            supervisor.wait_ready(WORKER)
            yield Served(alone, _serves(url) or 1, supervisor.tick)


@contextmanager
def version_served(config: RunConfig, wanted: str) -> Iterator[Served]:
    """As :func:`model_served`, for a version of a run that its store still has.

    Args:
        config: of the run, whose log can be read.
        wanted: ``newest``, ``best`` or a number.

    Raises:
        ConfigError: it is something else.
        RunError: there is no such version.
    """
    from pipelines.export import export, parse_version

    with TemporaryDirectory(prefix="asyncflow-eval-") as scratch:
        directory = Path(scratch) / "model"
        exported = export(config, parse_version(wanted), directory)
        with model_served(config, directory) as served:
            yield replace(served, exported=exported.version)


def run_served(config: RunConfig) -> Served:
    """The workers of a run that runs, with the newest version that one of them serves.

    Raises:
        RunError: none of them answers.
    """
    versions = [version for url in config.rollout.workers if (version := _serves(url)) is not None]
    versions = versions or _announced(config)
    if not versions:
        raise RunError(
            f"no worker of run {config.name!r} answers (asked: {', '.join(config.rollout.workers) or 'the registry'}); "
            "start the run (asyncflow up --resume), or let a worker of its own serve what it learned: --version newest"
        )
    evaluation = config.evaluation.model_copy(update={"worker_run": ""})
    return Served(config.model_copy(update={"evaluation": evaluation}), max(versions))


@dataclass
class _Asking(Generic[Result]):
    """What a thread that asks came to."""

    results: list[Result] = field(default_factory=list)
    faults: list[BaseException] = field(default_factory=list)

    def run(self, work: Callable[[], Result]) -> None:
        try:
            self.results.append(work())
        except BaseException as fault:  # noqa: BLE001 - it is raised where the result is waited for
            self.faults.append(fault)


def while_served(served: Served, work: Callable[[], Result]) -> Result:
    """Does the work in a thread and looks after the worker meanwhile: one that dies ends it at once.

    Raises:
        ProcessDied: the worker died.
    """
    asking = _Asking[Result]()
    thread = threading.Thread(target=asking.run, args=(work,), daemon=True)
    thread.start()
    while thread.is_alive():
        served.tick()
        thread.join(TICK_S)
    if asking.faults:
        raise asking.faults[0]
    return asking.results[0]


def _alone(config: RunConfig, model: Path) -> RunConfig:
    (port,) = free_ports(1)
    tree = config.model_dump(mode="json")
    tree["model"] = {"path": str(model.absolute()), "dtype": _dtype(config)}
    tree["worker"] |= {"host": LOOPBACK, "port": port, "alone": True, "advertise": None}
    tree["rollout"] |= {"workers": [f"http://{LOOPBACK}:{port}"], "discover": False}
    tree["learner"]["lora"] = {}  # an adapter has been added to the model, or there was none
    tree["evaluation"]["worker_run"] = ""
    return validate(tree, "asyncflow eval")


def _dtype(config: RunConfig) -> str:
    from trainers.precision import fastest_dtype

    return fastest_dtype() if config.model.dtype == "auto" else config.model.dtype


def _serves(url: str) -> int | None:
    """The version that a worker serves; null if there is no worker."""
    try:
        with urlopen(f"{url}/asyncflow/status", timeout=_LOOK_S) as answer:  # noqa: S310 - the configuration's address
            return int(json.load(answer)["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _announced(config: RunConfig) -> list[int]:
    """The versions of workers that announced themselves and are there."""
    if not config.rollout.discover:
        return []
    try:
        entries = {each.url: each for each in read_topic(config.kafka, config.topics.workers, WorkerEntry.decode)}
    except BrokerError:
        return []
    fresh = [each for each in entries.values() if (now() - each.at).total_seconds() < _HEARD_S]
    return [version for each in fresh if each.state == "up" and (version := _serves(each.url)) is not None]
