"""The constant in front of a loss: which sums and means it is under."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import LossError


@dataclass(frozen=True)
class Scale:
    """The constant ``c`` in ``E_n = c Σ_j e``; ``factor`` times a torch reduction.

    ``over`` names what ``Ē`` averages over: ``"samples"`` (``c = factor``), ``"elements"``, torch's
    mean over samples and outputs (``c = factor / K``), or ``"sum"``, torch's plain sum (``c =
    factor · N``).
    """

    factor: float = 1.0
    over: Literal["samples", "elements", "sum"] = "samples"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise LossError(f"a loss scale must be positive and finite, got {self.factor}")

    def value(self, batch: int, outputs: int) -> float:
        """``c`` for ``batch`` = N samples of ``outputs`` = K outputs."""
        if self.over == "elements":
            return self.factor / outputs
        return self.factor * batch if self.over == "sum" else self.factor

    def __str__(self) -> str:
        reduction = {
            "samples": "sum over outputs, mean over samples (c = {})",
            "elements": "mean over samples and outputs (c = {}/K)",
            "sum": "sum over samples and outputs (c = {} N)",
        }[self.over]
        return reduction.format(f"{self.factor:g}")


PER_SAMPLE = Scale()
"""``c = 1``: summed over outputs, averaged over samples."""
