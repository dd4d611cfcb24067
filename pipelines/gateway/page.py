"""The web page: jinja2 templates, all of whose values are escaped; htmx brings pieces of it up to date."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

if TYPE_CHECKING:
    from pipelines.gateway.fates import Report
    from schemas.config import RunConfig

_TEMPLATES: Final = Path(__file__).with_name("templates")


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip


def _render(name: str, status: int = HTTPStatus.OK, **values: Any) -> HTMLResponse:
    return HTMLResponse(_environment().get_template(name).render(**values), status)


def wants_fragment(request: Request) -> bool:
    """Whether htmx asks, for a piece of the page."""
    return request.headers.get("hx-request") == "true"


def wants_html(request: Request) -> bool:
    """Whether a browser asks."""
    return wants_fragment(request) or "text/html" in request.headers.get("accept", "")


def index(config: RunConfig, version: int | None) -> HTMLResponse:
    """The page itself."""
    gateway = config.gateway
    return _render("page.html.j2", title=gateway.title, page=gateway.page, run=config.name, version=version)


def version(version: int | None) -> HTMLResponse:
    """The newest weight version."""
    return _render("version.html.j2", version=version)


def fate(request: Request, report: Report, status: int = HTTPStatus.OK) -> HTMLResponse:
    """What became of the judgements of an answer: a piece of the page, or a page of its own."""
    name = "fate.html.j2" if wants_fragment(request) else "fate_page.html.j2"
    return _render(name, status, report=report)
