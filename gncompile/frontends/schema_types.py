"""What the records of a model file are made of: a strict frozen record, and types with bounds.

Every number and every list has a bound, so that no file asks for more than a machine could ever hold. A
field's ``description`` is what docs/model_file.md says of its key.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Size = Annotated[int, Field(gt=0, le=10**9)]
Index = Annotated[int, Field(ge=0, lt=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MAX_NODES = 400
"""Of one model file; compiling takes longer than in proportion to them."""
Interval = tuple[float, float]
EVERYWHERE = (-math.inf, math.inf)
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]


def ordered(interval: Interval) -> Interval:
    """``interval`` if it has a lower and a higher end."""
    low, high = interval
    if not low < high:
        raise ValueError(f"[{low:g}, {high:g}] is no interval: give a lower and a higher bound")
    return interval


class Record(BaseModel):
    """A frozen section that refuses unknown keys and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
