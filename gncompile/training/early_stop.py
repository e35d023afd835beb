"""When a fit ends early, and the best of its validations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import GncompileError, is_whole

VALIDATION_LOSS = "validation_loss"


class StopTraining(Exception):
    """A callback raises it to end a fit, with the reason as its text; returning True does the same.

    The fit ends as at its last update: a checkpoint is written, and the model holds what is reported.
    ``history.ended`` tells the reason.
    """


@dataclass(frozen=True)
class EarlyStop:
    """End a fit after ``patience`` validations in a row that were not better, ``fit(..., early_stop=...)``.

    Better is a value of ``monitor``, ``"validation_loss"`` or the name of one of the fit's metrics, that is
    lower, or of a metric of which more is better higher, by more than ``min_delta``. NaN never is.

    >>> EarlyStop(patience=5, monitor="accuracy", min_delta=0.001).patience
    5
    """

    patience: int
    monitor: str = VALIDATION_LOSS
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        number = isinstance(self.min_delta, int | float) and not isinstance(self.min_delta, bool)
        checks = {
            "patience": (is_whole(self.patience), "a number of validations from 1"),
            "monitor": (isinstance(self.monitor, str), "'validation_loss' or a metric's name"),
            "min_delta": (number and 0 <= self.min_delta < math.inf, "a number from 0"),
        }
        for name, (fits, wanted) in checks.items():
            if not fits:
                raise GncompileError(
                    f"{name} is {getattr(self, name)!r}",
                    where="EarlyStop",
                    instead=f"give {wanted}",
                )


@dataclass(frozen=True)
class Best:
    """The best validation so far, one record that is replaced as a whole: an interrupt cannot part it."""

    monitor: str = VALIDATION_LOSS
    value: float | None = None
    """The best value, of the first validation that had it."""
    bar: float | None = None
    """What a value has to pass, by ``min_delta``, for the waiting to begin anew."""
    waited: int = 0
    """Validations since one did."""
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    """The reported parameters at ``value`` by name, where they are kept."""

    def after(
        self,
        value: float,
        higher: bool,
        min_delta: float = 0.0,
        parameters: Callable[[], Mapping[str, Tensor]] = dict,
    ) -> Best:
        """The best after one more validation; ``parameters`` is asked where that is better."""
        passed = _better(value, self.bar, higher, min_delta)
        better = _better(value, self.value, higher)
        return Best(
            self.monitor,
            value if better else self.value,
            value if passed else self.bar,
            0 if passed else self.waited + 1,
            parameters() if better else self.parameters,
        )

    def numbers(self) -> dict[str, Any]:
        """All but the parameters, for JSON."""
        return {
            "monitor": self.monitor, "best": self.value, "bar": self.bar, "waited": self.waited,
        }  # fmt: skip

    @classmethod
    def of(cls, numbers: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> Best:
        """The inverse of :meth:`numbers`; older checkpoints have no monitor and no bar."""
        best = numbers.get("best")
        return cls(
            numbers.get("monitor", VALIDATION_LOSS), best, numbers.get("bar", best),
            numbers.get("waited", 0), dict(parameters),
        )  # fmt: skip


def _better(value: float, than: float | None, higher: bool, by: float = 0.0) -> bool:
    """Whether a value is better by more than ``by``; any finite one is better than none."""
    if than is None:
        return math.isfinite(value)
    return math.isfinite(value) and (value - than if higher else than - value) > by
