"""How pipelines are run on Beam: its options, and the figures of the process that submits them."""

from collections.abc import Sequence
from typing import Final

from apache_beam.options.pipeline_options import PipelineOptions
from prometheus_client import start_http_server

from pipelines.local.prism import find_prism
from schemas.errors import PortError

_FOREVER_S: Final = 10 * 365 * 86_400
"""Beam takes this for the longest life of a portable pipeline: 300 s unless told otherwise."""
_DEFAULT_RUNNER: Final = "PrismRunner"


def beam_options(beam_args: Sequence[str]) -> PipelineOptions:
    """Beam's options: Prism unless another runner is named, and its binary unless that is given too."""
    arguments = list(beam_args)
    if not _names(arguments, "--runner"):
        arguments.append(f"--runner={_DEFAULT_RUNNER}")
    prism = any(argument.endswith(_DEFAULT_RUNNER) for argument in arguments)
    if prism and not _names(arguments, "--prism_location") and not _names(arguments, "--job_endpoint"):
        arguments.append(f"--prism_location={find_prism()}")
    if not _names(arguments, "--job_server_timeout"):
        arguments.append(f"--job_server_timeout={_FOREVER_S}")
    return PipelineOptions(arguments, streaming=True, save_main_session=False)


def _names(arguments: Sequence[str], option: str) -> bool:
    return any(argument == option or argument.startswith(f"{option}=") for argument in arguments)


def serve_metrics(section: str, host: str, port: int) -> None:
    """Serves this process's figures to Prometheus.

    Args:
        section: of the configuration that has ``metrics_host`` and ``metrics_port``, for the message.
        host: address of this machine.
        port: 0 for none.

    Raises:
        PortError: something else listens there, or the address is not this machine's.
    """
    if not port:
        return
    try:
        start_http_server(port, addr=host)
    except OSError as error:
        given = f"{section}.metrics_host {host!r}, {section}.metrics_port {port}"
        raise PortError(f"{given}: {error.strerror}; give a free port, or 0 for none") from error
