"""Who asks: by a proxy's header, a browser's cookie, or a program's word.

The user of a browser is named by a digest of its cookie, so that nobody who reads the topics can pass for them.
"""

import hashlib
import re
import secrets
from http import HTTPStatus
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

from fastapi import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from schemas.gateway import GatewayConfig

HEADER: Final = "X-AsyncFlow-User"
COOKIE: Final = "asyncflow_person"
ANONYMOUS: Final = "anonymous"
"""All programs that do not say who they are."""
_BROWSER: Final = "web-"
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{22}")
_YEAR_S: Final = 365 * 24 * 3600
_MAX_CHARACTERS: Final = 256


def user_of(request: Request, config: GatewayConfig, claimed: str | None = None) -> str:
    """The user of a request.

    Args:
        request: as it came.
        config: says whether a proxy names the user.
        claimed: what the request's body says; null if it says nothing.

    Raises:
        HTTPException: 401 if the proxy names nobody, 403 if the body claims to be somebody else.
    """
    if config.trusts_user_header:
        return _named_by_proxy(request, claimed)
    own = _named_by_cookie(request)
    if claimed is not None and claimed.startswith(_BROWSER) and claimed != own:
        raise HTTPException(HTTPStatus.FORBIDDEN, f"users that begin with {_BROWSER!r} are browsers, known by cookies")
    return claimed or own or ANONYMOUS


def _named_by_proxy(request: Request, claimed: str | None) -> str:
    named = request.headers.get(HEADER, "").strip()
    if not named or len(named) > _MAX_CHARACTERS:
        raise HTTPException(HTTPStatus.UNAUTHORIZED, f"the proxy named no user of 1 to 256 characters in {HEADER}")
    if claimed is not None and claimed != named:
        raise HTTPException(HTTPStatus.FORBIDDEN, "the body names another user than the proxy; leave it out")
    return named


def _named_by_cookie(request: Request) -> str | None:
    secret = request.cookies.get(COOKIE, "")
    if not _SECRET.fullmatch(secret):
        return None
    return _BROWSER + hashlib.sha256(secret.encode()).hexdigest()[:16]


def set_cookie(request: Request, response: Response) -> None:
    """Gives a browser that has none a cookie of its own."""
    if _named_by_cookie(request) is None:
        response.set_cookie(
            COOKIE, secrets.token_urlsafe(16), max_age=_YEAR_S, httponly=True, samesite="lax",
            secure=request.url.scheme == "https",
        )  # fmt: skip


def address_of(connection: HTTPConnection) -> str:
    """Where a request comes from: an IPv4 address, or the 64 bits of an IPv6 network that one customer has."""
    host = connection.client.host if connection.client else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host[:64]
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped or ip_network((int(address) >> 64 << 64, 64)))
    return host
