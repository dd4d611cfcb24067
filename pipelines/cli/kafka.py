"""``asyncflow kafka``."""

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import tyro

from pipelines.cli.interrupts import sigterm_is_ctrl_c
from pipelines.cli.options import parse
from schemas.errors import RunError

_DESCRIPTION = """Serves the log of a finished run again, until Ctrl-C or SIGTERM, for any Kafka client.

Prints "kafka HOST:PORT" once clients can connect. Example:

  asyncflow kafka runs/demo
"""


@dataclass(frozen=True)
class KafkaOptions:
    """Arguments of the verb."""

    run: tyro.conf.Positional[str]
    """Directory or name of the run."""
    port: int | None = None
    """Port to listen on; by default a free one."""
    debug: bool = False
    """Show the traceback of an error that the user can mend."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb and returns the exit code."""
    options = parse(KafkaOptions, "kafka", arguments, _DESCRIPTION)
    from pipelines.runs import KAFKA_NAME, find_config, lock_run

    _, directory = find_config(options.run)
    assert directory is not None, "without an address a run is found by its directory"
    if not (directory / KAFKA_NAME).is_dir():
        raise RunError(f"run {options.run!r} has no log here: {directory / KAFKA_NAME} does not exist")
    with lock_run(directory), sigterm_is_ctrl_c(), suppress(KeyboardInterrupt):
        _serve(directory, options.port)
    return 0


def _serve(directory: Path, port: int | None) -> None:
    from pipelines.local.broker import Broker
    from pipelines.local.ports import require_free
    from pipelines.local.supervisor import TICK_S, Supervisor
    from pipelines.runs import KAFKA_NAME

    if port is not None:
        require_free(port, "--port")
    broker = Broker(directory / KAFKA_NAME, port)
    with Supervisor(directory / "logs", directory) as supervisor:
        supervisor.start(broker.spec("kafka"))
        supervisor.wait_ready("kafka")
        sys.stdout.write(f"kafka {broker.bootstrap}\n")
        sys.stdout.flush()
        while True:
            supervisor.tick()
            time.sleep(TICK_S)
