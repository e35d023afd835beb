"""What a verification compared, and how far apart it was."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.tables import table, wrapped
from ..errors import visible

TOLERANCE = 1e-9
"""Relative error allowed where both sides are exact: float64 rounding, amplified by a few layers."""


@dataclass(frozen=True)
class Check:
    """One comparison: of which layer (``""`` for the network), what, with what, and how far apart."""

    layer: str
    compared: str
    reference: str
    error: float
    tolerance: float = TOLERANCE

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; a NaN is not."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class VerifyReport:
    """All comparisons of one model."""

    model: str
    seed: int
    sizes: tuple[tuple[str, int, int], ...]
    """``(node, full size, shrunken size)`` of inputs, layers and the output."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every comparison is within its tolerance."""
        return all(check.ok for check in self.checks)

    def to_text(self) -> str:
        """An aligned table of the comparisons, and the verdict."""
        rows = [("layer", "compared", "with", "rel. error", "allowed", "")]
        rows += [
            (c.layer or "(network)", c.compared, c.reference, f"{c.error:.1e}", f"{c.tolerance:.0e}",
             "ok" if c.ok else "FAILED")
            for c in self.checks
        ]  # fmt: skip
        shrunk = ", ".join(f"{name} {full}→{small}" for name, full, small in self.sizes)
        failed = sum(not check.ok for check in self.checks)
        verdict = f"{failed} of {len(self.checks)} comparisons failed" if failed else (
            f"all {len(self.checks)} comparisons within tolerance")  # fmt: skip
        head = f"{self.model}, float64, seed {self.seed}; shrunken: {shrunk}"
        parts = ["\n".join(wrapped(head, further="  ")), table(rows, right=(3, 4)), verdict]
        return visible("\n\n".join(parts))

    def __str__(self) -> str:
        return self.to_text()
