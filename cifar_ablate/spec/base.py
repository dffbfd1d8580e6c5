"""What all parts of a study's schema are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Spec(BaseModel):
    """Base of all parts of a study: closed, strict and frozen; the docstring under a field is its description."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Percent = Annotated[float, Field(ge=0, le=100)]
