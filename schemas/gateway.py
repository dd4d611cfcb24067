"""How people and programs reach the newest weights: the section ``gateway`` of the configuration."""

from typing import Annotated

from pydantic import Field

from schemas.sections import Positive, Section


class GatewayConfig(Section):
    """A gateway: a web page and an OpenAI-compatible route, whose every answer can be judged."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8080
    """Port to listen on."""
    max_in_flight: Positive = 64
    """Answers being generated at once; further requests are refused with 503."""
    address_rate_per_s: Annotated[float, Field(gt=0)] = 20.0
    """Requests from one address that are served, on average; more are refused with 429."""
    address_burst: Positive = 200
    """Requests from one address that are served at once."""
    max_prompt_bytes: Positive = 1 << 16
    """Longest request body."""
    trusts_user_header: bool = False
    """Take the user's name from the header ``X-AsyncFlow-User``, set by a proxy that has authenticated them; else a
    browser is known by a cookie and a program by the field ``user`` of its requests."""
    title: str = "AsyncFlow"
    """Of the page."""
