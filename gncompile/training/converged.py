"""When a fit has converged: the tests of MINPACK's ``lmder``, by what a step tells [Moré 1978]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from ..base.options import checked
from ..base.settings import Settings
from .records import Record
from .steps import LookedAfter

MESSAGES: Mapping[int, str] = {
    -2: "a callback ended it.",
    0: "the maximum number of function evaluations is exceeded.",
    1: "`gtol` termination condition is satisfied.",
    2: "`ftol` termination condition is satisfied.",
    3: "`xtol` termination condition is satisfied.",
    4: "Both `ftol` and `xtol` termination conditions are satisfied.",
}
"""Why a fit ended by its status, in SciPy's numbers and words."""

Tolerance = Annotated[float, Field(ge=0, lt=1)] | None


@dataclass(frozen=True)
class Tolerances:
    """Where a fit ends, None leaves a test out. For the objective L, at a step δ of θ that was taken:

    ``ftol``: the change of L is at most ``ftol · |L|``, both as the quadratic model predicts it and as it
    was.
    ``xtol``: ``‖δ‖ ≤ xtol (xtol + ‖θ‖)``, for every parameter tensor by itself.
    ``gtol``: the predicted change is at most ``gtol² · |L|``. For squared errors the root of their ratio is
    the cosine of the angle between the residuals and all changes of them that the parameters can make;
    unlike a gradient it has no units.
    """

    ftol: float | None
    xtol: float | None
    gtol: float | None

    @classmethod
    def of(cls, dtype: torch.dtype, **given: object) -> Tolerances:
        """Checked, and none below the roundings of ``dtype``, beneath which nothing is measured."""
        wanted = "None or a number from 0, below 1"
        read = {name: checked(name, value, Tolerance, wanted) for name, value in given.items()}
        least = torch.finfo(dtype).eps
        return cls(**{name: t if t is None else max(t, least) for name, t in read.items()})


class Damped(Protocol):
    """What is asked of a trainer."""

    settings: Settings
    looked_after: LookedAfter

    @property
    def damping(self) -> float | None:
        """λ of the next step."""

    @damping.setter
    def damping(self, value: float) -> None: ...

    def trained(self) -> dict[str, Tensor]:
        """The parameters by name."""


LESS = 1e-6
"""λ's factor for the step that confirms; as many tries as a step has come back from there."""


class Convergence:
    """A callback that ends a fit where it has converged or made ``max_nfev`` evaluations, which it counts.

    A step has no more tries than there are evaluations left, so that there never are more.

    A step may be small for no other reason than its damping, on a plateau for one. So a test has to hold
    twice in a row, the second time with next to no damping: that step is Newton's, and doubles the digits.
    """

    def __init__(self, trainer: Damped, tolerances: Tolerances, max_nfev: int) -> None:
        self._trainer, self._tolerances, self._most = trainer, tolerances, max_nfev
        self._before, self._rejected = self._now(), 0
        self.status: int | None = None
        """A key of :data:`MESSAGES`; None as long as there is no reason to end."""
        self._confirms = False
        self.nfev, self.njev = 1, 0
        """Evaluations of the loss, the first one included, and of the Jacobian."""
        self._bound_tries()

    def __call__(self, record: Record) -> bool:
        """Whether the step of ``record`` was the last."""
        before, self._before = self._before, self._now()
        taken, self._rejected = record.rejected == self._rejected, record.rejected
        self.nfev, self.njev = self.nfev + record.tried, self.njev + 1
        found = self._status(record, before if taken else None)
        if found is None or self._confirms:
            self.status, self._confirms = found, False
        else:
            self._confirms = True
            least, _ = self._trainer.settings.damping_bounds
            self._trainer.damping = max(LESS * (self._trainer.damping or 0.0), least)
        if self.status is None and self.nfev >= self._most:
            self.status = 0
        self._bound_tries()
        return self.status is not None

    def _bound_tries(self) -> None:
        """Let the next step try no more dampings than there are evaluations left."""
        tries = self._trainer.settings.damping_tries
        self._trainer.looked_after.most_tries = min(tries, self._most - self.nfev)

    def _now(self) -> list[Tensor]:
        return [parameter.clone() for parameter in self._trainer.trained().values()]

    def _status(self, record: Record, before: list[Tensor] | None) -> int | None:
        """Which test a step passes from the parameters ``before``, None if it was undone."""
        if record.predicted is None or (before is None and record.rho is not None):
            return None
        ftol, xtol, gtol = self._tolerances.ftol, self._tolerances.xtol, self._tolerances.gtol
        size, promised = abs(record.objective), abs(record.predicted)
        made = abs(promised * (record.rho or 0.0))  # no ρ: rounding
        if not promised or (gtol is not None and promised <= gtol**2 * size):
            return 1
        by_f = ftol is not None and max(promised, made) <= ftol * size
        by_x = xtol is not None and before is not None and self._moved_little(before, xtol)
        return 4 if by_f and by_x else 2 if by_f else 3 if by_x else None

    def _moved_little(self, before: list[Tensor], xtol: float) -> bool:
        moved = torch._foreach_norm(torch._foreach_sub(self._before, before))
        sizes = torch._foreach_norm(self._before)
        pairs = zip(moved, sizes, strict=True)
        return all(float(step) <= xtol * (xtol + float(size)) for step, size in pairs)
