"""What every request passes before its route: the limit of its address, and the headers of every answer."""

import asyncio
import math
from http import HTTPStatus
from typing import Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.gateway import metrics
from pipelines.gateway.people import address_of
from transforms.buckets import Buckets

_HELD_S: Final = 0.5
"""How long an address that asks too much waits to hear so: a client that floods is slowed down, not answered faster."""
_UNLIMITED: Final = ("/metrics", "/health", "/static/")
_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, addresses: Buckets) -> None:
        """Wraps ``app``; ``addresses`` says how much each may ask."""
        self._app, self._addresses = app, addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        refused = await self._refuse(scope)
        await (refused or self._app)(scope, receive, send_with_headers)

    async def _refuse(self, scope: Scope) -> JSONResponse | None:
        if scope["path"].startswith(_UNLIMITED):
            return None
        wait_s = self._addresses.take(address_of(HTTPConnection(scope)))
        if wait_s:
            await asyncio.sleep(_HELD_S)
            return refusal(HTTPStatus.TOO_MANY_REQUESTS, "too many requests from this address", wait_s)
        if scope["method"] == "POST" and Headers(scope=scope).get("sec-fetch-site") in ("cross-site", "same-site"):
            return refusal(HTTPStatus.FORBIDDEN, "another web site may not send requests in its visitors' names")
        return None


def refusal(status: int, message: str, wait_s: float = 0.0) -> JSONResponse:
    """An answer in the form of OpenAI's errors.

    Args:
        status: of HTTP.
        message: one sentence.
        wait_s: after which it may be tried again; 0 to say nothing.
    """
    metrics.REFUSALS.labels(str(int(status))).inc()
    headers = {"Retry-After": str(math.ceil(wait_s))} if wait_s else {}
    error = {"message": message, "type": HTTPStatus(status).phrase.lower().replace(" ", "_"), "code": int(status)}
    return JSONResponse({"error": error}, status, headers)
