"""The local stack of one run: every process on this machine, in one directory.

broker ─► topics ─► worker, learner, Prism (at once) ─► worker serves its first version ─► rollout pipeline
                                                                └─► if asked for: feedback pipeline, gateway, evaluator

runs/<name>/
    config.toml     what the processes read: ports, absolute paths and dtype filled in
    lock            held while the run is in use
    logs/           <process>.log
    kafka/          the log itself
    weights/        the weight store
    traces/         a file of spans for each process, with tracing.exporter = "file"
    checkpoints/    of the learner
    receipts.key    of a gateway, unless the configuration names another
"""

import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Final, Self

import structlog
import tomli_w

from pipelines.local.broker import Broker
from pipelines.local.paths import DEFAULT_RUNS, make_directory
from pipelines.local.placement import environment_on, place, visible_gpus
from pipelines.local.ports import LOOPBACK, accepts, free_ports, require_free
from pipelines.local.prism import find_prism, prism_command
from pipelines.local.supervisor import TICK_S, Spec, Supervisor
from pipelines.local.threads import cores, thread_environment
from pipelines.local.topics import create_topics
from pipelines.model_facts import read_model
from pipelines.runs import CONFIG_NAME, KAFKA_NAME, lock_run, name_taken, served
from pipelines.sizes import checkpoint_bytes, version_bytes
from schemas.config import KafkaConfig, RolloutConfig, RunConfig, WorkerConfig, load, validate
from schemas.errors import ConfigError, DiskError, ModelError, RunError
from schemas.gateway import GatewayConfig
from schemas.receipts import KEY_NAME, make_key
from schemas.weights import held_versions
from transforms.modules import absolute

BROKER: Final = "kafka"
PRISM: Final = "prism"
WORKER: Final = "worker"
LEARNER: Final = "learner"
ROLLOUT: Final = "rollout"
FEEDBACK_PRISM: Final = "prism-feedback"
FEEDBACK: Final = "join-feedback"
GATEWAY: Final = "gateway"
EVALUATOR: Final = "evaluate"

_STATUS_TIMEOUT_S: Final = 2.0
_WORKER_READY_S: Final = 600.0  # compiling for a GPU takes minutes
_LEARNER_READY_S: Final = 1800.0  # and so does reading a large checkpoint
SPARE_BYTES: Final = 1 << 30
HELD_BY_EVALUATOR: Final = 2
"""Weight versions that it keeps in the store beside the newest ones: the best, and the one that it asks."""

_log = structlog.get_logger(__name__)


class Stack:
    """The processes of one run, from the broker to the pipeline.

    Args:
        config: of the run; its name becomes the directory's. Ports that differ from their defaults are
            taken as asked for; the others are chosen free.
        runs: where runs have their directories.
        resume: go on with a run that exists, under the configuration given.
        restarts: how often each process may die.
        held_out: prompts in JSON lines that an evaluator asks, once :meth:`start_evaluator` was called; null for none.

    Attributes:
        directory: ``runs/<name>``, absolute.
        config: what the processes read; written to ``config.toml``.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        runs: Path = DEFAULT_RUNS,
        resume: bool = False,
        restarts: int = 0,
        held_out: Path | None = None,
    ) -> None:
        self.directory = (runs / config.name).absolute()
        self._given, self._resume, self._restarts, self._held_out = config, resume, restarts, held_out
        self._ends_with = [LEARNER]
        self.config = config
        self._lock: IO[str] | None = None
        self._supervisor: Supervisor | None = None

    def __enter__(self) -> Self:
        """Takes the run's directory.

        Raises:
            RunError: the run exists and is not to be resumed, does not exist and is, or is in use.
            ModelError: there is no model where the configuration says.
            PortError: a port that was asked for is taken.
            DiskError: there is no room.
        """
        check_model(self._given)
        self._claim()
        try:
            self._prepare()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        ended = self.stop()
        if isinstance(error, KeyboardInterrupt):  # the command line tells notes as one line
            error.add_note(f"ended {', '.join(ended)}" if ended else "nothing had been started")
            error.add_note(f"go on with asyncflow up --name {self.config.name} --resume")

    @property
    def supervisor(self) -> Supervisor:
        """Who looks after the processes, between enter and stop."""
        assert self._supervisor is not None, "enter the stack first"
        return self._supervisor

    def workers(self) -> list[str]:
        """Base URLs of the vLLM workers that it starts."""
        return [f"http://{LOOPBACK}:{port}" for port in (self.config.worker.port, *self._worker_ports)]

    def served(self) -> AbstractContextManager[RunConfig]:
        """The configuration under which the log can be read, after :meth:`stop`, while the context lasts."""
        return served(str(self.directory))

    def start_serving(self, on_tick: Callable[[], None] | None = None) -> None:
        """Starts broker, workers, learner and Prism; returns when the workers serve their first version.

        Raises:
            ProcessDied: one died too often or did not come up in time.
            UserError: one says what the user can mend.
        """
        prism = find_prism()
        self.supervisor.start(self._broker_spec())
        self.supervisor.wait_ready(BROKER, on_tick=on_tick)
        create_topics(self.config)
        workers = [self._worker_spec(), *self._further_worker_specs()]
        self.supervisor.start(self._prism_spec(prism, PRISM, self._prism_port, ROLLOUT), *workers, self._learner_spec())
        self.supervisor.wait_ready(*(worker.name for worker in workers), PRISM, on_tick=on_tick)

    def start_rollout(self) -> None:
        """Starts the pipeline."""
        flags = self.beam_flags()
        self.supervisor.start(self._pipeline_spec(ROLLOUT, self.config.rollout.metrics_port, flags))

    def start_feedback(self) -> None:
        """Starts the feedback pipeline, with a Prism of its own: neither pipeline falls with the other's."""
        self.supervisor.start(self._prism_spec(find_prism(), FEEDBACK_PRISM, self._feedback_prism_port, FEEDBACK))
        self.supervisor.wait_ready(FEEDBACK_PRISM)
        flags = self.beam_flags(self._feedback_prism_port)
        self.supervisor.start(self._pipeline_spec(FEEDBACK, self.config.feedback.metrics_port, flags))

    def start_gateway(self) -> None:
        """Starts the gateway and returns when it serves."""
        port = self.config.gateway.port
        ready, restarts = (lambda: accepts(port)), self._restarts
        command, environment = self._command(GATEWAY), environment_of(GATEWAY)
        self.supervisor.start(Spec(GATEWAY, command, environment, ready=ready, restarts=restarts, grace_s=10))
        self.supervisor.wait_ready(GATEWAY)

    def start_evaluator(self) -> None:
        """Starts what asks held-out prompts of every version; :meth:`wait` returns when it has asked the last one."""
        assert self._held_out is not None, "give the stack held-out prompts"
        command = self._command(EVALUATOR, "--prompts", str(self._held_out.absolute()))
        self.supervisor.start(
            Spec(EVALUATOR, command, environment_of(EVALUATOR), restarts=self._restarts, grace_s=10, ends=True)
        )
        self._ends_with.append(EVALUATOR)

    def wait(self, on_tick: Callable[[], None] | None = None) -> None:
        """Returns when the learner has done all its steps, and the evaluator, if there is one, has asked the last.

        Args:
            on_tick: called about ten times a second.

        Raises:
            ProcessDied: one died too often.
            UserError: one says what the user can mend.
        """
        while not all(self.supervisor.is_done(name) for name in self._ends_with):
            self.supervisor.tick()
            if on_tick:
                on_tick()
            time.sleep(TICK_S)

    def stop(self) -> list[str]:
        """Ends everything in good order and gives the directory back. Harmless when nothing runs.

        Returns:
            The names of the processes that ran, in the order in which they were ended.
        """
        ended: list[str] = []
        if self._supervisor is not None:
            ended = self._supervisor.stop()
            self._supervisor = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        return ended

    def _claim(self) -> None:
        exists = (self.directory / CONFIG_NAME).exists()
        name = self._given.name
        if self._resume and not exists:
            raise RunError(f"no run {name!r} to resume: {self.directory / CONFIG_NAME} does not exist; start it first")
        make_directory(self.directory)
        self._lock = lock_run(self.directory)
        if exists and not self._resume:
            self.stop()
            raise name_taken(name, self.directory.parent)

    def _prepare(self) -> None:
        check_room(self._given, self.directory, evaluates=self._held_out is not None)
        self._placement = place(self._given, visible_gpus())
        ports = free_ports(8 + self._given.local.workers)
        self._controller_port, self._prism_port, self._feedback_prism_port, *self._worker_ports = ports[6:]
        self.config = self._resolve(ports[:6])
        (self.directory / CONFIG_NAME).write_text(tomli_w.dumps(self.config.model_dump(mode="json", exclude_none=True)))
        if self._given.feedback.key_file == KEY_NAME:
            make_key(self.directory / KEY_NAME)
        self._supervisor = Supervisor(self.directory / "logs", self.directory)

    def _resolve(self, ports: list[int]) -> RunConfig:
        return resolve(self._given, self.directory, ports)

    def _broker_spec(self) -> Spec:
        port = local_port(self.config.kafka.bootstrap)
        broker = Broker(self.directory / KAFKA_NAME, port, self._controller_port)
        return broker.spec(BROKER, self._restarts)

    def _prism_spec(self, prism: Path, name: str, port: int, bound: str) -> Spec:
        return Spec(
            name, prism_command(prism, port), environment_of(name), ready=lambda: accepts(port),
            restarts=self._restarts, grace_s=5, bound=bound,
        )  # fmt: skip

    def _worker_spec(self) -> Spec:
        return self._worker_on(WORKER, self.config.worker.port, self._placement.workers[0])

    def _further_worker_specs(self) -> list[Spec]:
        """The workers beside the first; they announce themselves to the pipeline."""
        places = enumerate(zip(self._worker_ports, self._placement.workers[1:], strict=True), 2)
        return [
            self._worker_on(worker_name(number), port, gpus, "--worker.port", str(port))
            for number, (port, gpus) in places
        ]

    def _worker_on(self, name: str, port: int, gpus: str, *more: str) -> Spec:
        status, environment = f"http://{LOOPBACK}:{port}/asyncflow/status", environment_of(WORKER)
        return Spec(
            name, self._command("worker", *more), environment | environment_on(gpus), ready=lambda: _answers(status),
            ready_timeout_s=_WORKER_READY_S, restarts=self._restarts,
        )  # fmt: skip

    def _learner_spec(self) -> Spec:
        port, ranks = self.config.learner.metrics_port, self.config.local.ranks
        environment = environment_of(LEARNER, ranks) | environment_on(self._placement.learner)
        return Spec(
            LEARNER, [*_launcher(ranks), *self._command("learn")], environment, ready=lambda: accepts(port),
            ready_timeout_s=_LEARNER_READY_S, restarts=self._restarts, grace_s=60, ends=True,
        )  # fmt: skip

    def _pipeline_spec(self, name: str, port: int, flags: Sequence[str]) -> Spec:
        """A pipeline; its verb is its name, and it lives and dies with its Prism."""
        return Spec(
            name, self._command(name, *flags), environment_of(name), ready=lambda: accepts(port),
            restarts=self._restarts, grace_s=30, bound=name,
        )  # fmt: skip

    def beam_flags(self, prism_port: int | None = None) -> list[str]:
        """Beam's options for a pipeline that runs on a Prism of the stack, by default the rollout pipeline's."""
        endpoint = f"--job_endpoint={LOOPBACK}:{prism_port or self._prism_port}"
        return ["--runner=PortableRunner", endpoint, "--environment_type=LOOPBACK"]

    def _command(self, verb: str, *more: str) -> list[str]:
        return [*asyncflow_command(), verb, "--config", str(self.directory / CONFIG_NAME), *more]


def worker_name(number: int) -> str:
    """Of the stack's workers, counted from 1."""
    return WORKER if number == 1 else f"{WORKER}-{number}"


def asyncflow_command() -> list[str]:
    """What starts the command line of this environment."""
    script = Path(sys.executable).with_name("asyncflow")
    return [str(script)] if script.exists() else [sys.executable, "-m", "pipelines.cli.main"]


def _launcher(ranks: int) -> list[str]:
    """What starts several ranks of a command."""
    if ranks == 1:
        return []
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "--no-python"]


def resolve(config: RunConfig, directory: Path, ports: list[int]) -> RunConfig:
    """The configuration with everything filled in that the processes have to agree about.

    Args:
        config: as the user gave it.
        directory: of the run; relative paths become absolute below it.
        ports: six free ones, for Kafka, worker, the metrics of both pipelines and the learner, and the gateway.
    """
    tree = config.model_dump(mode="json")
    kafka_port = _asked_port(local_port(config.kafka.bootstrap), local_port(KafkaConfig().bootstrap), "kafka.bootstrap")
    worker_port = _asked_port(config.worker.port, WorkerConfig().port, "worker.port")
    rollout_metrics = _asked_port(config.rollout.metrics_port, 0, "rollout.metrics_port")
    learner_metrics = _asked_port(config.learner.metrics_port, 0, "learner.metrics_port")
    tree["kafka"]["bootstrap"] = f"{LOOPBACK}:{kafka_port or ports[0]}"
    tree["worker"] |= {"host": LOOPBACK, "port": worker_port or ports[1]}
    environments = config.rollout.environments
    data = {name: str(directory.absolute()) for name, directory in environments.data.items()}
    own_environments = [absolute(name) for name in environments.modules]
    tree["rewards"]["modules"] = [absolute(name) for name in config.rewards.modules]
    tree["rollout"] |= {
        "environments": {**tree["rollout"]["environments"], "data": data, "modules": own_environments},
        "workers": [f"http://{LOOPBACK}:{worker_port or ports[1]}", *_other_workers(config)],
        "metrics_port": rollout_metrics or ports[2],
    }
    tree["learner"] |= {
        "metrics_port": learner_metrics or ports[3],
        "checkpoint_root": _below(config.learner.checkpoint_root, directory),
    }
    tree["feedback"] |= {
        "metrics_port": _asked_port(config.feedback.metrics_port, 0, "feedback.metrics_port") or ports[4],
        "key_file": config.feedback.key_file and _below(config.feedback.key_file, directory),
    }
    gateway_port = _asked_port(config.gateway.port, GatewayConfig().port, "gateway.port")
    tree["gateway"] |= {"port": gateway_port or ports[5]}
    tree["weights"]["root"] = _below(config.weights.root, directory)
    tree["tracing"]["directory"] = _below(config.tracing.directory, directory)
    tree["model"] = {"path": str(Path(config.model.path).absolute()), "dtype": _dtype(config)}
    return validate(tree, "resolved")


def _other_workers(config: RunConfig) -> list[str]:
    """Workers that somebody else runs."""
    return [url for url in config.rollout.workers if url not in RolloutConfig().workers]


def check_model(config: RunConfig) -> Path:
    """The model's directory.

    Raises:
        ModelError: it is not a Hugging Face directory with safetensors and a tokenizer.
    """
    path = Path(config.model.path)
    expected = "expected a directory with config.json, tokenizer.json and *.safetensors; give one with --model DIR"
    if not config.model.path or not path.is_dir():
        raise ModelError(f"model.path = {config.model.path!r}: no such directory; {expected}")
    missing = [name for name in ("config.json", "tokenizer.json") if not (path / name).exists()]
    if not any(path.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        raise ModelError(f"model.path = {config.model.path!r} lacks {', '.join(missing)}; {expected}")
    return path


def check_room(config: RunConfig, directory: Path, *, evaluates: bool = False) -> None:
    """Whether the weights and checkpoints of the run will fit.

    Args:
        config: of the run.
        directory: of the run.
        evaluates: whether an evaluator is started, which keeps versions in the store for itself.

    Raises:
        DiskError: there is less room than they need.
        ModelError: the model cannot be read, or has no layers for the adapter.
    """
    model = read_model(check_model(config))
    held = max(_count_held(config, directory), HELD_BY_EVALUATOR if evaluates else 0)
    copies = config.weights.keep + held + 1
    versions = copies * version_bytes(config, model, _dtype(config))
    needed = versions + (config.learner.keep_checkpoints + 1) * checkpoint_bytes(config, model) + SPARE_BYTES
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DiskError(
            f"{directory} has {free / 1e9:.1f} GB free and the run needs {needed / 1e9:.1f} GB "
            f"({copies} weight versions, {held} of them held by evaluations, {config.learner.keep_checkpoints + 1} "
            "checkpoints, 1 GB for the rest); "
            "make room, or lower weights.keep or learner.keep_checkpoints"
        )


def _count_held(config: RunConfig, directory: Path) -> int:
    """Weight versions that evaluations of an earlier start of the run still keep in the store."""
    from fsspec.implementations.local import LocalFileSystem

    root = _below(config.weights.root, directory)
    if "://" in root:  # a store that is elsewhere
        return 0
    return len(set().union(*held_versions(LocalFileSystem(), root).values()))


def saved_config(name: str, runs: Path = DEFAULT_RUNS) -> RunConfig:
    """The configuration that a run was started with, with its ports to be chosen anew.

    Raises:
        RunError: there is no such run.
    """
    file = runs / name / CONFIG_NAME
    if not file.exists():
        raise RunError(f"no run {name!r} to resume: {file} does not exist; start it first")
    tree: dict[str, Any] = load(file).model_dump(mode="json")
    own = f"http://{LOOPBACK}:{tree['worker']['port']}"
    tree["rollout"]["workers"] = [url for url in tree["rollout"]["workers"] if url != own] or RolloutConfig().workers
    tree["kafka"]["bootstrap"] = KafkaConfig().bootstrap
    tree["worker"]["port"] = WorkerConfig().port
    tree["gateway"]["port"] = GatewayConfig().port
    for section in ("rollout", "learner", "feedback"):
        tree[section]["metrics_port"] = 0
    return validate(tree, str(file))


def environment_of(process: str, ranks: int = 1) -> dict[str, str]:
    """The environment in which a process of the stack runs, or each of so many ranks that share the cores."""
    own = {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1", **thread_environment(process, max(1, cores() // ranks))}
    return {**os.environ, **own}


def _asked_port(port: int, default: int, key: str) -> int | None:
    return None if port == default else require_free(port, key)


def local_port(bootstrap: str) -> int:
    """The port that the stack's own broker is asked to take.

    Raises:
        ConfigError: the address is not of this machine.
    """
    host, _, port = bootstrap.rpartition(":")
    if host not in (LOOPBACK, "localhost") or not port.isdigit():
        raise ConfigError(
            f"kafka.bootstrap = {bootstrap!r}: the local stack starts a broker of its own; "
            f"give {LOOPBACK}:PORT, or nothing for a free port"
        )
    return int(port)


def _below(path: str, directory: Path) -> str:
    return path if "://" in path else str(directory / path)


def _dtype(config: RunConfig) -> str:
    if config.model.dtype != "auto":
        return config.model.dtype
    from trainers.precision import fastest_dtype

    return fastest_dtype()


def _answers(url: str) -> bool:
    from urllib.request import urlopen

    try:
        with urlopen(url, timeout=_STATUS_TIMEOUT_S) as answer:  # noqa: S310 - our own address
            return bool(answer.status == 200)
    except OSError:
        return False
