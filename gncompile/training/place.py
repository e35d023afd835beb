"""Where a fit stands, between the data and the trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.data_sets import Batches


@dataclass
class Place:
    """Where a fit stands besides the trainer's own state; saved with it, so that the next fit goes on."""

    batches: Batches | None = None
    position: dict[str, int] | None = None
    """Where ``batches`` stood after the last step: a batch taken since has not been trained on."""
    best: float = math.inf
    """Lowest validation loss of this fit."""
    waited: int = 0
    """Validations since then."""
    saved: dict[str, Any] = field(default_factory=dict)
    """A loaded state, until a fit takes it up."""

    def begin(self, train: object, continued: bool) -> None:
        """A fit over ``train`` starts: where the loaded state was saved, if there is one."""
        saved = self.saved if continued else {}
        batches = train if isinstance(train, Batches) else None
        if batches is not None and saved.get("batches"):
            batches.load_state_dict(saved["batches"])
        best = saved.get("best")
        self.best = math.inf if best is None else float(best)
        self.waited = int(saved.get("waited", 0))
        self.batches = batches
        self.taken()
        self.saved = {}

    def taken(self) -> None:
        """All batches so far have been trained on, or refused."""
        self.position = None if self.batches is None else self.batches.state_dict()

    def go_back(self) -> None:
        """Take the batches after the last step for not taken, where a fit was broken off."""
        if self.batches is not None and self.position is not None:
            self.batches.load_state_dict(self.position)

    def validated(self, loss: float) -> None:
        """Count one validation; NaN is never the best."""
        better = loss < self.best
        self.best, self.waited = (loss, 0) if better else (self.best, self.waited + 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; infinity is None."""
        if self.saved:
            return self.saved
        return {
            "batches": self.position,
            "best": self.best if math.isfinite(self.best) else None,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep ``state`` for the next fit."""
        self.saved = dict(state)
