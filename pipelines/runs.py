"""Finding a run and its log: live, elsewhere, or finished on this machine."""

import fcntl
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from typing import IO

from pipelines.local.paths import DEFAULT_RUNS
from schemas.config import RunConfig, load
from schemas.errors import ConfigError, RunError
from schemas.suggestions import did_you_mean

NAME = "NAME"
"""How a message calls a run that a verb takes without a flag."""
CONFIG_NAME = "config.toml"
KAFKA_NAME = "kafka"


def find_config(
    run: str, bootstrap: str | None = None, *, or_else: str = "its name and --bootstrap"
) -> tuple[RunConfig, Path | None]:
    """The configuration of a run, and its directory if it has one on this machine.

    Args:
        run: a run directory, or the name of a run (looked for in ``runs/``).
        bootstrap: where its log is served; null for where its configuration says.
        or_else: what a user can give instead of a directory.

    Raises:
        RunError: there is no such directory, and no address to look for the name at.
    """
    for directory in (Path(run), DEFAULT_RUNS / run):
        if (directory / CONFIG_NAME).is_file():
            config = load(directory / CONFIG_NAME)
            return with_bootstrap(config, bootstrap), directory
    if bootstrap is None or "/" in run:
        known = known_runs()
        hint = did_you_mean(run, known, others="runs here:") if known else "runs here: none"
        raise RunError(
            f"no run {run!r}: neither {run}/{CONFIG_NAME} nor runs/{run}/{CONFIG_NAME} exists ({hint}); "
            f"give its directory, or {or_else}"
        )
    return with_bootstrap(RunConfig(name=run), bootstrap), None


def find_run(run: str | None, file: Path | None, bootstrap: str | None = None, *, flag: str = "--run") -> RunConfig:
    """The configuration of a run that a user named in one of two ways; see :func:`find_place`."""
    return find_place(run, file, bootstrap, flag=flag)[0]


def find_place(
    run: str | None, file: Path | None, bootstrap: str | None = None, *, flag: str = "--run"
) -> tuple[RunConfig, Path | None]:
    """The configuration of a run that a user named in one of two ways, and its directory if that was how.

    Args:
        run: directory or name of the run.
        file: with its configuration, as --config.
        bootstrap: where its log is served; null for where its configuration says.
        flag: as which the first was to be given, for the message.

    Raises:
        ConfigError: it was named in no way, or in both, or the file is wrong.
        RunError: there is no such run.
    """
    if (run is None) == (file is None):
        raise ConfigError(f"name the run by exactly one of {flag} and --config")
    if run is not None:
        return find_config(run, bootstrap, or_else="its name and --bootstrap, or its configuration with --config")
    assert file is not None
    return with_bootstrap(load(file), bootstrap), None


def with_bootstrap(config: RunConfig, bootstrap: str | None) -> RunConfig:
    """The configuration with other brokers; unchanged where none are given."""
    if bootstrap is None:
        return config
    return config.model_copy(update={"kafka": config.kafka.model_copy(update={"bootstrap": bootstrap})})


def known_runs() -> list[str]:
    """The names of the runs in the working directory's ``runs``."""
    return sorted(file.parent.name for file in DEFAULT_RUNS.glob(f"*/{CONFIG_NAME}"))


def run_exists(name: str, runs: Path = DEFAULT_RUNS) -> bool:
    """Whether a run of that name was started on this machine."""
    return (runs / name / CONFIG_NAME).exists()


def free_name(name: str, runs: Path = DEFAULT_RUNS) -> str:
    """The name, or the first of ``name-2``, ``name-3`` and so on that no run has."""
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    return next(each for each in names if not run_exists(each, runs))


def name_taken(name: str, runs: Path = DEFAULT_RUNS) -> RunError:
    """What to say of a run that exists already."""
    return RunError(
        f"run {name!r} exists already ({(runs / name).absolute()}); give another --name, go on with it (asyncflow up "
        f"--name {name} --resume), or take the next free name (--if-exists new)"
    )


def lock_run(directory: Path) -> IO[str]:
    """Takes a run's directory for this process, until the returned file is closed.

    Raises:
        RunError: another process has it.
    """
    lock = (directory / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        where = _bootstrap_of(directory)
        raise RunError(f"run {directory.name!r} is in use by another process{where}; end that one first") from error
    return lock


def is_locked(directory: Path) -> bool:
    """Whether a living process has a run's directory; the lock of a dead one is none."""
    try:
        with (directory / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def _bootstrap_of(directory: Path) -> str:
    file = directory / CONFIG_NAME
    return f" (its log: {load(file).kafka.bootstrap})" if file.exists() else ""


@contextmanager
def served(
    run: str | None, bootstrap: str | None = None, file: Path | None = None, *, flag: str = NAME
) -> Iterator[RunConfig]:
    """The configuration of a run whose log can be read while the context lasts; arguments as of :func:`find_place`.

    The log of a finished run of this machine is served by a broker of its own for that time.

    Raises:
        ConfigError: the run was named in no way, or in both, or the file is wrong.
        RunError: there is no such run, or another process is about to serve it.
        BrokerError: its log can be read nowhere.
    """
    from pipelines.local.broker import Broker
    from pipelines.local.ports import accepts

    config, directory = find_place(run, file, bootstrap, flag=flag)
    if bootstrap or directory is None or not (directory / KAFKA_NAME).is_dir() or accepts(_port_of(config)):
        yield config
        return
    with closing(lock_run(directory)), Broker(directory / KAFKA_NAME) as broker:
        yield with_bootstrap(config, broker.bootstrap)


def _port_of(config: RunConfig) -> int:
    """Of the first broker. The bootstrap of a stack of this machine always ends in one."""
    return int(config.kafka.bootstrap.split(",")[0].rpartition(":")[2])
