"""The constant in front of a loss: which sums and means it is under."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ..errors import LossError

Over = Literal["samples", "elements", "sum", "outputs", "weights", "sample weights", "targets"]


@dataclass(frozen=True)
class Scale:
    """The constant ``c`` in ``E_n = c Σ_j e``; ``factor`` times a torch reduction.

    ``over`` names what ``Ē`` averages over: ``"samples"`` (``c = factor``), ``"elements"``, torch's
    mean over samples and outputs (``c = factor / K``; of a cross-entropy the K are its places), ``"sum"``,
    torch's plain sum (``c = factor · N``), or ``"outputs"``, the mean over outputs and sum over samples
    (``c = factor · N / K``).

    The others divide by what only the batch says (:attr:`of_batch`), ``c = factor · N / Σ_n d_n``: its
    ``"weights"``, ``d = Σ_j w_j``; its ``"sample weights"``, ``d = (1/K) Σ_j w_j``; or, as torch's
    cross-entropy does, its ``"targets"``, each counted with the weight of its class, those left out with 0.
    """

    factor: float = 1.0
    over: Over = "samples"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.factor) and self.factor > 0):
            raise LossError(f"a loss scale must be positive and finite, got {self.factor}")

    @property
    def of_batch(self) -> bool:
        """Whether ``c`` depends on the weights or targets of a batch, the ``d`` in the target's rows."""
        return self.over in ("weights", "sample weights", "targets")

    def value(self, batch: int, outputs: int) -> float:
        """``c`` for ``batch`` = N samples of ``outputs`` = K outputs, all weights being 1."""
        if self.over in ("samples", "sample weights"):
            return self.factor
        if self.over in ("elements", "weights", "targets"):
            return self.factor / outputs
        return self.factor * batch / (outputs if self.over == "outputs" else 1)

    def __str__(self) -> str:
        reduction = {
            "samples": "sum over outputs, mean over samples (c = {})",
            "elements": "mean over samples and outputs (c = {}/K)",
            "sum": "sum over samples and outputs (c = {} N)",
            "outputs": "mean over outputs, sum over samples (c = {} N/K)",
            "weights": "weighted mean over samples and outputs (c = {} N/Σ w)",
            "sample weights": "sum over outputs, weighted mean over samples (c = {} N K/Σ w)",
            "targets": "mean over targets, weighted by class (c = {} N/Σ w_y)",
        }[self.over]
        return reduction.format(f"{self.factor:g}")


PER_SAMPLE = Scale()
"""``c = 1``: summed over outputs, averaged over samples."""
