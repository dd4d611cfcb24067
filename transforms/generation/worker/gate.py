"""The gate in front of vLLM's token route, and the worker's own status route.

    POST /inference/v1/generate ─► version new enough? ─► vLLM ─► weights proven? ─► answer

A request with ``X-AsyncFlow-Min-Version: N`` waits until the worker serves version N or a newer
one. An answer waits while freshly loaded weights are being probed: if they turn out wrong the
worker ends and the answer is never seen.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import JSONResponse

from transforms.generation.worker.doors import GENERATE_PATH, STATUS_PATH, Doors, digest_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from transforms.generation.worker.state import WorkerState

MIN_VERSION_HEADER: Final = "X-AsyncFlow-Min-Version"
_HEADER_BYTES: Final = MIN_VERSION_HEADER.lower().encode()
_MAX_DIGITS: Final = 18
"""Versions are 64-bit integers."""


class VersionGate:
    """ASGI middleware; every other path passes untouched."""

    def __init__(self, app: ASGIApp, state: WorkerState, max_wait_s: float) -> None:
        """Wraps ``app``; a request waits at most ``max_wait_s`` for its version."""
        self._app = app
        self._state = state
        self._max_wait_s = max_wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] != "http" or scope["path"] != GENERATE_PATH:
            await self._app(scope, receive, send)
            return
        refusal = await self._wait_for_version(dict(scope["headers"]).get(_HEADER_BYTES))
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._pass(scope, receive, send)

    async def _wait_for_version(self, header: bytes | None) -> JSONResponse | None:
        """None if the request may pass."""
        if header is None:
            return None
        if not header.isdigit() or len(header) > _MAX_DIGITS:
            return _error(400, f"{MIN_VERSION_HEADER} is {header[:40].decode('latin-1')!r}, expected a whole number")
        wanted = int(header)
        started = time.monotonic()
        is_here = await self._state.wait_for_version(wanted, self._max_wait_s)
        self._state.metrics.version_wait.inc(time.monotonic() - started)
        if is_here:
            return None
        if self._state.stopping:
            return _error(503, "the worker stops")
        waited = f"after {self._max_wait_s:g} s"
        return _error(503, f"weight version {wanted} is not here {waited}, serving {self._state.version}")

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_proven(message: Message) -> None:
            await self._state.settled()
            await send(message)

        self._state.requests_running += 1
        try:
            await self._app(scope, receive, send_proven)
        finally:
            self._state.requests_running -= 1


def _error(status: int, message: str) -> JSONResponse:
    """In the form of vLLM's own errors."""
    kind = "BadRequestError" if status == 400 else "ServiceUnavailableError"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status_code=status
    )


def install(app: Any, state: WorkerState, max_wait_s: float, key: str | None = None) -> None:
    """Adds doors, gate and status route to vLLM's application: the doors outside of all it has, the gate inside.

    Args:
        app: vLLM's.
        state: of the worker.
        max_wait_s: how long a request may wait for its version.
        key: what who uses the model has to show; null for nothing.
    """
    from starlette.middleware import Middleware

    # Starlette keeps what it is given here, and prints it.
    app.user_middleware.insert(0, Middleware(Doors, digest=None if key is None else digest_of(key)))
    app.user_middleware.append(Middleware(VersionGate, state=state, max_wait_s=max_wait_s))
    app.middleware_stack = app.build_middleware_stack()  # vLLM has built it already

    async def status() -> dict[str, Any]:
        return state.status()

    app.add_api_route(STATUS_PATH, status, methods=["GET"])
