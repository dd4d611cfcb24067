"""A worker: Beam's harness in a process of its own, which ends with its pool.

    python -m pipelines.beam_worker.worker CONTROL WORKER_ID METRICS_PORT

Nothing of a pipeline is known here before the runner sends it; what a pipeline names has to be importable.
"""

import os
import sys
import threading
from typing import Final

import grpc
import structlog
from apache_beam.runners.worker.sdk_worker import SdkHarness

from pipelines.cli.logs import configure_logging
from pipelines.local.ports import LOOPBACK
from pipelines.local.state_sampler import sample_often
from schemas.endpoint import serve_metrics
from schemas.errors import PortError

_LOG = structlog.get_logger(__name__)
_STATE_CACHE_BYTES: Final = 100 << 20
"""As workers within the submitting process have it."""
_ORPHANED: Final = 1


def main(control: str, worker_id: str, metrics_port: int) -> None:
    """Works for a runner until that lets go.

    Args:
        control: ``host:port`` of the runner's control service.
        worker_id: by which the runner knows it.
        metrics_port: of its figures; 0 for none.
    """
    configure_logging()
    threading.Thread(target=_end_with_pool, name="end-with-pool", daemon=True).start()
    sample_often()
    try:
        serve_metrics("beam-worker", LOOPBACK, metrics_port)
    except PortError as error:  # another pipeline's worker has it
        _LOG.warning("metrics_not_served", worker=worker_id, error=str(error))
    try:
        SdkHarness(control, worker_id=worker_id, state_cache_size=_STATE_CACHE_BYTES).run()
    except grpc.RpcError as error:
        _LOG.info("runner_gone", worker=worker_id, runner=control, error=str(error.details()))  # it ends us so, too


def _end_with_pool() -> None:
    while os.read(sys.stdin.fileno(), 1):  # the pool holds the other end and writes nothing
        pass
    os._exit(_ORPHANED)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
