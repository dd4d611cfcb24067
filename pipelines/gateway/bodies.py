"""Reading the body of a request without trusting its length, its speed or its bytes."""

import asyncio
from http import HTTPStatus
from typing import Final

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request

_LONGEST_S: Final = 20.0
"""How long a body may take to arrive."""


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The whole body.

    Raises:
        HTTPException: 413 if it is longer, 408 if it takes too long, 400 if it breaks off.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > most_bytes:
        raise _too_long(most_bytes)
    pieces, size = [], 0
    try:
        async with asyncio.timeout(_LONGEST_S):
            async for piece in request.stream():
                pieces.append(piece)
                size += len(piece)
                if size > most_bytes:
                    raise _too_long(most_bytes)
    except TimeoutError:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {_LONGEST_S:g} s",
        ) from None  # fmt: skip
    except ClientDisconnect:
        raise HTTPException(HTTPStatus.BAD_REQUEST, "the body broke off") from None
    return b"".join(pieces)


def _too_long(most_bytes: int) -> HTTPException:
    message = f"the body is longer than the {most_bytes} bytes that are taken here"
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message, headers={"Connection": "close"})
