"""The process: loads a classifier and serves it.

port ─► model, checked ─► batcher beside uvicorn, in one event loop, until SIGTERM or Ctrl-C
"""

import asyncio
import contextlib
import socket
from typing import Final

import structlog
import uvicorn

from pipelines.reward_model.app import build
from pipelines.reward_model.batcher import Batcher
from pipelines.reward_model.classifier import Classifier
from schemas.errors import ConfigError
from schemas.scoring import ScorerServerConfig
from transforms.listening import reserve_port

_LOG = structlog.get_logger(__name__)
_CONNECTIONS: Final = 8192
"""Most connections at once; further ones are answered 503."""
_GRACE_S: Final = 5
"""How long requests may go on after SIGTERM."""


def run(config: ScorerServerConfig) -> int:
    """Serves until it is told to stop.

    Returns:
        The exit code.

    Raises:
        UserError: port or model.
    """
    if not config.model:
        raise ConfigError("--model DIR is missing: give a directory such as asyncflow learn-scorer writes")
    with reserve_port("serve-scorer", config.host, config.port) as listener:
        classifier = Classifier(config)
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(config, classifier, listener))
    return 0


async def _serve(config: ScorerServerConfig, classifier: Classifier, listener: socket.socket) -> None:
    batcher = Batcher(
        classifier.score,
        rows=config.batch_rows,
        tokens=config.batch_tokens,
        wait_s=config.wait_ms / 1000,
        most_waiting=config.waiting_rows,
    )
    settings = uvicorn.Config(
        build(classifier, batcher), log_level="warning", access_log=False, server_header=False, lifespan="off",
        ws="none", limit_concurrency=_CONNECTIONS, timeout_graceful_shutdown=_GRACE_S,
    )  # fmt: skip
    working = asyncio.create_task(batcher.run())
    _LOG.info(
        "serving", url=f"http://{config.host}:{config.port}", model=config.model, device=classifier.device,
        max_tokens=classifier.max_tokens,
    )  # fmt: skip
    try:
        await uvicorn.Server(settings).serve(sockets=[listener])
    finally:
        working.cancel()
