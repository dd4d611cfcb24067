"""What every section of the configuration is: frozen, and without unknown keys."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_%-]+$", max_length=253)]
"""A name or an address to listen on, of either kind: ``127.0.0.1``, ``::1``, ``0.0.0.0``."""
Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """A part of the configuration; the docstring under a field describes it to people."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True,
        hide_input_in_errors=True,  # tyro and tracebacks show pydantic's text, and what was given may be a password
    )  # fmt: skip
