"""The doors of a worker: which routes there are at all, and which of them want a key.

    every request ─► on the list? ─► open, or the key is right? ─► gate, vLLM
                          └── 404                └── 401

vLLM serves some dozens of routes, and another version serves others: what this project does not use is not there. They
stand before everything else that vLLM puts in front of its routes.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

GENERATE_PATH: Final = "/inference/v1/generate"
STATUS_PATH: Final = "/asyncflow/status"
OPEN: Final = frozenset({("GET", "/health"), ("GET", STATUS_PATH), ("GET", "/metrics")})
"""For probes, pools and Prometheus: they tell figures, and nothing of prompts or answers."""
KEYED: Final = frozenset(
    {
        ("POST", GENERATE_PATH),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("GET", "/v1/models"),
    }
)
"""Whoever has the key, if there is one, can use the model."""
_SCHEME: Final = "Bearer "


class Doors:
    """ASGI middleware; the outermost."""

    def __init__(self, app: ASGIApp, digest: bytes | None) -> None:
        """Wraps ``app``; without a key's :func:`digest_of` all routes of the list are open."""
        self._app, self._digest = app, digest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._refuse(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refuse(self, scope: Scope) -> JSONResponse | None:
        """None if the request may pass."""
        route = scope["method"], scope["path"]
        if route in OPEN:
            return None
        if route not in KEYED:
            return _error(404, "NotFoundError", "a worker of AsyncFlow has no such route")
        if self._digest is None or hmac.compare_digest(self._digest, digest_of(_key_in(scope))):
            return None
        return _error(401, "AuthenticationError", "the worker's key (worker.api_key) is missing or wrong")


def _key_in(scope: Scope) -> str:
    given = Headers(scope=scope).get("Authorization", "")
    return given[len(_SCHEME) :] if given[: len(_SCHEME)].lower() == _SCHEME.lower() else ""


def digest_of(key: str) -> bytes:
    """Of one length, so that a comparison tells nothing of the key's."""
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _error(status: int, kind: str, message: str) -> JSONResponse:
    """In the form of vLLM's own errors."""
    error = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": error}, status_code=status)
