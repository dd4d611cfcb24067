"""Where the figures of a committed step are also written, by name: ``learner.trackers``.

    committed step ─► Trackers ─► jsonl · tensorboard · wandb · trackio · mlflow

Only what is named is imported. A tracker whose server is away must not end a run: what it could not take is told in
the log and lost to it, the ledger has it all the same. ``metrics.jsonl`` is a file like the others of the run, so a
full disk ends the learner as it does everywhere.

To add one: a class like those below, its line in ``_MAKERS``, and its name in ``schemas.trackers``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import structlog

from schemas.config import RunConfig
from schemas.errors import ConfigError
from schemas.ledger import StepEntry
from schemas.trackers import TrackerName

PROJECT: Final = "asyncflow"
"""Of services that group runs."""
_FILE: Final = "metrics.jsonl"

_log = structlog.get_logger(__name__)


class Tracker(Protocol):
    """Takes the figures of steps; a step that is done again comes again, with a later generation."""

    def log(self, entry: StepEntry, figures: Mapping[str, float]) -> None:
        """A step that was committed; figures by the names of docs/metrics.md."""

    def close(self) -> None:
        """Nothing more comes."""


class JsonLines:
    """``metrics.jsonl`` beside the checkpoints: one object a step. Example: ``{"at": "…", "step": 1, "loss": 0.1}``."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        del config
        directory.mkdir(parents=True, exist_ok=True)
        self._file = (directory / _FILE).open("a")

    def log(self, entry: StepEntry, figures: Mapping[str, float]) -> None:
        """Writes a line and flushes it."""
        self._file.write(json.dumps({"at": entry.at.isoformat(), **figures}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoard:
    """Scalars below ``tensorboard/`` beside the checkpoints."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        module: Any = import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(str(directory / "tensorboard" / config.name))

    def log(self, entry: StepEntry, figures: Mapping[str, float]) -> None:
        """Writes a scalar for each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, entry.step, entry.at.timestamp())
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


class WeightsAndBiases:
    """A run of the project ``asyncflow`` with the name of ours, gone on with by a learner that starts again."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        wandb: Any = import_module("wandb")
        tree = config.model_dump(mode="json")
        self._run = wandb.init(
            project=PROJECT, name=config.name, id=config.name, resume="allow", config=tree, dir=str(directory)
        )
        self._run.define_metric("*", step_metric="step")  # its own steps never go back, ours do after a crash

    def log(self, entry: StepEntry, figures: Mapping[str, float]) -> None:
        """Sends the figures."""
        del entry
        self._run.log(dict(figures))

    def close(self) -> None:
        """Waits until all is sent."""
        self._run.finish()


class Trackio:
    """A run of the project ``asyncflow`` with the name of ours, gone on with by a learner that starts again."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        del directory
        self._trackio: Any = import_module("trackio")
        tree = config.model_dump(mode="json")
        self._trackio.init(project=PROJECT, name=config.name, resume="allow", config=tree)

    def log(self, entry: StepEntry, figures: Mapping[str, float]) -> None:
        """Sends the figures."""
        self._trackio.log({name: value for name, value in figures.items() if name != "step"}, step=entry.step)

    def close(self) -> None:
        """Waits until all is sent."""
        self._trackio.finish()


class MLflow:
    """A run of the experiment ``asyncflow`` for each start of the learner, where ``MLFLOW_TRACKING_URI`` says."""

    def __init__(self, config: RunConfig, directory: Path) -> None:
        del directory
        self._mlflow: Any = import_module("mlflow")
        self._mlflow.set_experiment(PROJECT)
        self._mlflow.start_run(run_name=config.name)
        self._mlflow.log_dict(config.model_dump(mode="json"), "config.json")

    def log(self, entry: StepEntry, figures: Mapping[str, float]) -> None:
        """Has the figures sent by the client's own thread: it tries for minutes where no server answers."""
        self._mlflow.log_metrics(dict(figures), step=entry.step, synchronous=False)

    def close(self) -> None:
        """Waits until all is sent, and ends the run."""
        self._mlflow.end_run()


class _Maker(NamedTuple):
    make: Callable[[RunConfig, Path], Tracker]
    package: str
    """That has to be installed; empty for none."""


_MAKERS: Final[Mapping[TrackerName, _Maker]] = {
    "jsonl": _Maker(JsonLines, ""),
    "tensorboard": _Maker(TensorBoard, "tensorboard"),
    "wandb": _Maker(WeightsAndBiases, "wandb"),
    "trackio": _Maker(Trackio, "trackio"),
    "mlflow": _Maker(MLflow, "mlflow"),
}


class Trackers:
    """All trackers of a learner.

    Args:
        trackers: by name.
    """

    def __init__(self, trackers: Mapping[TrackerName, Tracker]) -> None:
        self._trackers = trackers

    def log(self, entry: StepEntry) -> None:
        """A step that was committed."""
        figures = {"step": entry.step, "generation": entry.generation, "version": entry.version, **entry.metrics}
        for name, tracker in self._trackers.items():
            try:
                tracker.log(entry, figures)
            except Exception as error:  # whatever somebody else's client raises
                if name == "jsonl":
                    raise
                _log.warning("tracker_failed", tracker=name, step=entry.step, error=repr(error))

    def close(self) -> None:
        """Ends all of them, those that fail too."""
        for tracker in self._trackers.values():
            with suppress(Exception):
                tracker.close()


def open_trackers(config: RunConfig) -> Trackers:
    """Those of ``learner.trackers``.

    Raises:
        ConfigError: one is not installed, or cannot be started.
    """
    directory = Path(config.learner.checkpoint_root).parent
    return Trackers({name: _open(name, config, directory) for name in _once(config.learner.trackers)})


def _open(name: TrackerName, config: RunConfig, directory: Path) -> Tracker:
    make, package = _MAKERS[name]
    if not package:
        return make(config, directory)
    try:
        return make(config, directory)
    except ImportError as error:
        raise ConfigError(
            f"learner.trackers names {name!r}, which is not installed ({error}); pip install {package}, or leave it out"
        ) from error
    except Exception as error:
        raise ConfigError(f"learner.trackers names {name!r}, which does not start: {error!r}") from error


def _once(names: Sequence[TrackerName]) -> list[TrackerName]:
    return list(dict.fromkeys(names))
