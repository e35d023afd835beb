"""The operation of a step program that reads a constant grid between its points."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..functions.interpolate import Interpolant, taps


@dataclass(frozen=True)
class Interpolate:
    """``y_cp = T_c(u_cp, v_cp, …)`` (inputs the grid ``[C, *size]``, then a value for each of its axes, in
    which features are ``[C, P]``), or a derivative, as ``of`` says: ``[.., N, C·P]``."""

    of: Interpolant

    @property
    def points(self) -> int:
        """How many of the grid's points a result is made of."""
        return math.prod(len(taps(self.of.kernel, order)) for order in self.of.order)
