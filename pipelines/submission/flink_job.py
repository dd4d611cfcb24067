"""A job that was sent to Flink as a jar, and how it is ended.

Beam 2.77 asks Flink to end such a job at an address that Flink does not have, so that the job would run on. Here it is
asked as Flink's REST API has it: ``PATCH /v1/jobs/ID?mode=cancel``.
"""

import time
from contextlib import suppress
from typing import Any, Final

import requests
from apache_beam.runners.portability.flink_uber_jar_job_server import FlinkBeamJob, FlinkUberJarJobServer

_ENDED: Final = ("CANCELED", "FINISHED", "FAILED")
_ACCEPTED: Final = 202
_ANSWER_S: Final = 10.0
_LOOK_S: Final = 0.5
_ENDS_S: Final = 60.0


def job_of(result: Any) -> FlinkBeamJob | None:
    """Beam's own handle of the job, which knows Flink's address and the job's name there.

    Args:
        result: of ``Pipeline.run``.

    Returns:
        None of a pipeline that did not go to Flink as a jar.
    """
    service = getattr(result, "_job_service", None)
    return service._jobs[result._job_id] if isinstance(service, FlinkUberJarJobServer) else None


def cancel(job: FlinkBeamJob, limit_s: float = _ENDS_S) -> None:
    """Asks Flink to cancel a job until it has ended; looks that fail are made again.

    Raises:
        RuntimeError: it has not ended within the limit, and how it is ended by hand.
    """
    path, until = f"v1/jobs/{job._flink_job_id}", time.monotonic() + limit_s
    while time.monotonic() < until:
        with suppress(requests.RequestException, RuntimeError):  # Beam's error of another status
            if job.get(path, timeout=_ANSWER_S)["state"] in _ENDED:
                job.delete_jar()
                return
            job.request(requests.patch, f"{path}?mode=cancel", expected_status=_ACCEPTED, timeout=_ANSWER_S)
        time.sleep(_LOOK_S)
    told = f"curl -X PATCH '{job._master_url}/{path}?mode=cancel'"
    raise RuntimeError(f"Flink has not ended the job within {limit_s:g} s: look there, and end it with {told}")
