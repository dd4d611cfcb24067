"""What a runner is asked for, and whether that can work: found before anything is submitted.

    Submission, RunConfig ──► check ──► [Check: name, formula with the numbers filled in, verdict, what to do]

Pure functions, but for three looks at this machine: whether there is a Java, whether Google's clients are installed,
and whether an address is its own.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from pipelines.graph.graph import graph_of
from pipelines.graph.runners import WORDS, Answer, answer_of, judge
from pipelines.local.ports import is_ours
from pipelines.submission.chosen import ONE_PROCESS, longest_bundle_s, places
from pipelines.submission.submission import PipelineName, Submission, read
from schemas.checks import Check, problems
from schemas.config import RunConfig
from schemas.errors import ConfigError
from transforms.carried import Carried

_LOOPBACK: Final = ("127.", "localhost", "[::1]")
_DATAFLOWS: Final = ("project", "region", "temp_location", "sdk_container_image")
_JUDGED_AS: Final = {"portable": "prism"}
_FILE: Final = re.compile(r"\{file:([^}]+)\}")
_Checks = Iterator[Check]


def check(submission: Submission, config: RunConfig) -> list[Check]:
    """All relations between a runner's options and a configuration, and what was chosen."""
    return [found for each in _CHECKS for found in each(submission, config)]


def rehearse(pipeline: PipelineName, config: RunConfig, arguments: Sequence[str]) -> list[Check]:
    """As :func:`check`, of Beam's arguments; a runner that these pipelines are not for is a problem too."""
    try:
        return check(read(pipeline, config, arguments), config)
    except ConfigError as error:
        return [Check("runner", " ".join(arguments), "problem", str(error))]


def require(submission: Submission, config: RunConfig) -> None:
    """Refuses what would not work.

    Raises:
        ConfigError: with each formula and what to do.
    """
    faults = [f"{each.formula}: {each.remedy}" for each in problems(check(submission, config))]
    if faults:
        raise ConfigError("this cannot be submitted: " + "; ".join(faults))


def _runner(submission: Submission, config: RunConfig) -> _Checks:
    verdicts = judge(_JUDGED_AS.get(submission.runner, submission.runner), graph_of(submission.pipeline, config).uses)
    answer = answer_of(verdicts)
    told = f"the {submission.pipeline} pipeline on {submission.runner}: {WORDS[answer]}"
    lacks = "; ".join(f"{each.feature}: {each.why}" for each in verdicts if each.answer == Answer.NOT)
    remedy = f"{lacks}; name another --runner, see asyncflow graph {submission.pipeline}" if lacks else ""
    yield Check("runner", told, "problem" if lacks else "ok", remedy)


def _options(submission: Submission, _: RunConfig) -> _Checks:
    chosen = ", ".join(f"--{name}={option.value} ({option.why})" for name, option in submission.chosen.items())
    if chosen:
        yield Check("chosen for the runner", chosen, "ok", "")


def _environment(submission: Submission, _: RunConfig) -> _Checks:
    """Where the code of the pipeline runs."""
    kind, address = submission.environment, submission.option("environment_config")
    if submission.runner in ("fnapi", "dataflow"):
        given = submission.option("environment_type")
        own = "runs it in this process" if submission.runner == "fnapi" else "has --sdk_container_image for that"
        remedy = f"{submission.runner} {own}: leave it out" if given else ""
        yield _found("workers", f"--environment_type={given or 'not given'}", remedy)
        return
    what, wants = _ENVIRONMENTS.get(kind, (f"no such kind of worker: {kind}", "one of " + ", ".join(_ENVIRONMENTS)))
    needs = bool(wants) and not (address or submission.option("environment_options"))
    needs = needs or kind not in _ENVIRONMENTS
    remedy = f"expected {wants}" if needs else ""
    if kind == "LOOPBACK" and submission.makes_jar:
        remedy = "the jar runs when this process is gone: give --environment_type=EXTERNAL, DOCKER or PROCESS"
    formula = f"--environment_type={kind}: {what}{f', {address}' if address else ''}"
    if not remedy and kind == "EXTERNAL" and submission.runner == "prism" and _is_elsewhere(address):
        told = (
            "Prism tells its workers to look for it at localhost: asyncflow beam-worker finds it from another machine"
        )
        yield Check("workers", formula, "warning", f"{told}, Beam's own pool does not")
        return
    yield _found("workers", formula, remedy)


def _is_elsewhere(address: str) -> bool:
    """Whether ``HOST:PORT`` is another machine's, as far as can be told without asking a name server."""
    if not address or address.startswith(_LOOPBACK):
        return False
    try:
        return not is_ours(str(ip_address(address.rpartition(":")[0].strip("[]"))))
    except ValueError:  # a name
        return True


_ENVIRONMENTS: Final = {
    "LOOPBACK": ("threads of this process", ""),
    "EXTERNAL": (
        "a pool that runs already",
        "--environment_config=HOST:PORT, where asyncflow beam-worker, or the image's --worker_pool, listens",
    ),
    "DOCKER": (
        "containers that the runner starts",
        "--environment_config=IMAGE, one with this project in it: Beam's own has not",
    ),
    "PROCESS": (
        "processes that the runner starts",
        '--environment_config={"command": "/opt/apache/beam/boot"}, with the project installed there',
    ),
}


def _flink(submission: Submission, _: RunConfig) -> _Checks:
    """How a pipeline comes to Flink: by Beam's job server, or as a jar."""
    if submission.runner != "flink":
        return
    by_jar = submission.option("flink_submit_uber_jar")
    if by_jar and not submission.has_cluster:
        formula = f"--flink_submit_uber_jar, --flink_master={submission.option('flink_master') or '[auto]'}"
        yield _found("flink", formula, "a jar is sent to a cluster: give --flink_master=HOST:PORT, or leave it out")
        return
    java = submission.option("job_server_java_launcher") or "java"
    served = bool(by_jar or submission.option("job_endpoint"))
    remedy = f"Beam's job server needs it: install a Java that Flink {_flink_version(submission)} knows, or give "
    remedy += "--job_server_java_launcher, --job_endpoint or --flink_submit_uber_jar"
    formula = "as a jar, or by a job server that runs already" if served else f"by Beam's job server, with {java}"
    yield _found("flink", formula, "" if served or shutil.which(java) else f"there is no {java} on the PATH; {remedy}")


def _flink_version(submission: Submission) -> str:
    return submission.option("flink_version") or "2.2"


def _dataflow(submission: Submission, _: RunConfig) -> _Checks:
    """What Google wants to know, and that its clients are installed here."""
    if submission.runner != "dataflow":
        return
    missing = [f"--{name}" for name in _DATAFLOWS if not submission.option(name)]
    remedy = "the image is one with this project in it, temp_location a gs:// directory" if missing else ""
    given = ", ".join(f"--{name}={submission.option(name)}" for name in _DATAFLOWS if submission.option(name))
    formula = f"{', '.join(missing)} not given" if missing else given
    yield _found("dataflow", formula, remedy)
    installed = _is_installed("google.cloud.dataflow")
    clients = f"Google's clients are {'installed' if installed else 'not installed here'}"
    yield _found("dataflow's clients", clients, "" if installed else 'pip install "asyncflow-rl[dataflow]"')


def _one_process(submission: Submission, _: RunConfig) -> _Checks:
    """A share's pool is one process's: another one that opens it takes it away."""
    if submission.runner == "dataflow":
        name, wanted = "experiments", ONE_PROCESS
        remedy = f"a process for each core fences the others: give --experiments={ONE_PROCESS}"
    else:
        name, wanted = "sdk_worker_parallelism", "1"
        remedy = "a reader that is built anew in another process fences the first one's pool: leave it 1"
    if given := submission.option(name):
        formula = f"--{name}={given} {'has' if name == 'experiments' else '='} {wanted}"
        yield _found("processes a machine", formula, "" if wanted in given.split(",") else remedy)


def _parallelism(submission: Submission, config: RunConfig) -> _Checks:
    """Machines, or Flink's slots, for what the work divides into."""
    name = {"flink": "parallelism", "dataflow": "max_num_workers"}.get(submission.runner)
    if name is None:
        return
    given, useful = _number(submission, name), places(submission.pipeline, config)
    if submission.pipeline == "join-feedback":
        formula = f"--{name}={given:g} = 1"
        remedy = (
            "reader and writer may then be in two processes, which nobody has run: leave it 1" if given != 1 else ""
        )
        yield Check("parallelism", formula, "warning" if remedy else "ok", remedy)
        return
    partitions = config.kafka.partitions
    formula = f"--{name}={given:g} = rollout.shares {useful} ≤ kafka.partitions {partitions}"
    idle = f"{given - useful:g} get nothing to do: raise rollout.shares to {given:g}, or lower it to {useful}"
    crowded = f"{useful} shares are looked at by {given:g}, one after the other: raise it to {useful}"
    remedy = idle if given > useful else crowded if given < useful else ""
    yield Check("parallelism", formula, "warning" if remedy else "ok", remedy)


def _timeouts(submission: Submission, config: RunConfig) -> _Checks:
    """Nothing that a runner waits for may end before the longest bundle; answers are waited for in none."""
    bundle_s = longest_bundle_s(submission.pipeline, config)
    what = (
        f"(1 + rollout.group_size {config.rollout.group_size}) × rewards.timeout_s {config.rewards.timeout_s:g} = "
        f"{bundle_s:g} s; an answer of up to rollout.request_timeout_s {config.rollout.request_timeout_s:g} is waited "
        "for by the pool, in no bundle"
        if submission.pipeline == "rollout"
        else f"kafka.transaction_timeout_s {bundle_s:g}"
    )
    yield Check("longest bundle", what, "ok", "")
    for name, unit_s in _TIMEOUTS.items():
        if submission.option(name):
            limit_s = _number(submission, name) * unit_s
            remedy = f"a bundle is broken off that is at work: raise it above {bundle_s / unit_s:g}"
            formula = f"--{name}={submission.option(name)}: {limit_s:g} s > the longest bundle {bundle_s:g} s"
            yield _found(name, formula, remedy if limit_s <= bundle_s else "")


_TIMEOUTS: Final = {"checkpoint_timeout_millis": 0.001, "element_processing_timeout_minutes": 60.0}
"""What breaks off a bundle, in seconds a unit."""


def _checkpoints(submission: Submission, _: RunConfig) -> _Checks:
    if submission.runner != "flink":
        return
    interval = _number(submission, "checkpointing_interval")
    formula = f"--checkpointing_interval={interval:g} ms > 0"
    remedy = "Flink keeps no state and starts nothing again after a fault: give 10000"
    yield _found("checkpoints", formula, remedy if interval <= 0 else "")


def _elsewhere(submission: Submission, config: RunConfig) -> _Checks:
    """What workers that are not this process find where they are."""
    if submission.works_here or submission.runner == "fnapi":
        return
    files = Carried.of(config).files
    travels = ", ".join(name for name, _ in files) or "none is named"
    size = sum(len(content) for _, content in files)
    yield Check("files that travel", f"{travels}: {size:,} bytes in the pipeline", "ok", "")
    for key, path in _paths(submission, config).items():
        remedy = "workers look below a working directory of their own: give the absolute path that it has there"
        yield _found(key, f"{key} = {path!r}, read by workers", "" if Path(path).is_absolute() else remedy)
    yield from _addresses(submission, config)


def _paths(submission: Submission, config: RunConfig) -> dict[str, str]:
    paths = {"model.path": config.model.path}
    if submission.pipeline == "rollout":
        data = config.rollout.environments.data
        paths |= {f"rollout.environments.data.{name}": str(path) for name, path in data.items()}
    elif config.feedback.key_file:
        paths["feedback.key_file"] = config.feedback.key_file
    for key, value in config.kafka.client.items():
        if found := _FILE.search(str(value)):
            paths[f"kafka.client.{key}"] = found[1]
    return {key: path for key, path in paths.items() if path}


def _addresses(submission: Submission, config: RunConfig) -> _Checks:
    """Addresses of this machine alone, where workers stand on others."""
    asked = {"kafka.bootstrap": config.kafka.bootstrap.split(",")}
    if submission.pipeline == "rollout":
        asked["rollout.workers"] = [urlsplit(url).netloc for url in config.rollout.workers]
    for key, addresses in asked.items():
        local = [each for each in addresses if each.startswith(_LOOPBACK)]
        where = f"{key} = {', '.join(addresses) or 'none'}, as workers reach it"
        remedy = f"{', '.join(local)} is each machine's own: right only where workers run on this one" if local else ""
        wrong = submission.runner == "dataflow" and not (key == "rollout.workers" and config.rollout.discover)
        yield Check(key, where, ("problem" if wrong else "warning") if remedy else "ok", remedy)


def _loopback(submission: Submission, _: RunConfig) -> _Checks:
    """A cluster on other machines does not find workers in this process."""
    if not submission.has_cluster or not submission.works_here or submission.makes_jar:
        return
    host = submission.option("flink_master").removeprefix("http://").removeprefix("https://")
    remedy = "Flink looks for them at its own localhost: give --environment_type=EXTERNAL or DOCKER"
    formula = f"--environment_type=LOOPBACK, --flink_master={host}"
    yield _found("flink's way to workers", formula, "" if host.startswith(_LOOPBACK) else remedy)


def _is_installed(module: str) -> bool:
    with suppress(ModuleNotFoundError):
        return find_spec(module) is not None
    return False


def _number(submission: Submission, name: str) -> float:
    given = submission.option(name) or "0"
    try:
        return float(given)
    except ValueError as error:
        raise ConfigError(f"--{name}={given}: expected a number") from error


def _found(name: str, formula: str, remedy: str) -> Check:
    return Check(name, formula, "problem" if remedy else "ok", remedy)


_CHECKS: Final[tuple[Callable[[Submission, RunConfig], _Checks], ...]] = (
    _runner, _options, _environment, _loopback, _flink, _dataflow, _one_process, _parallelism, _checkpoints, _timeouts,
    _elsewhere,
)  # fmt: skip
