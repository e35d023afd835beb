"""Where a fit stands, between the data and the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..data.data_sets import Batches
from .early_stop import Best


@dataclass
class Place:
    """Where a fit stands besides the trainer's own state; saved with it, so that the next fit goes on."""

    batches: Batches | None = None
    position: dict[str, int] | None = None
    """Where ``batches`` stood after the last step: a batch taken since has not been trained on."""
    best: Best = field(default_factory=Best)
    """The best validation of this fit."""
    resumed: bool = False
    """Whether this was loaded, and no fit has taken it up."""

    def begin(self, train: object, continued: bool, monitor: str, keep: bool) -> None:
        """A fit over ``train`` starts: where the loaded state was saved, if there is one.

        The best of another monitored value is not its best, nor one whose parameters were not kept.
        """
        continued &= self.resumed
        batches = train if isinstance(train, Batches) else None
        if batches is not None and continued and self.position:
            batches.load_state_dict(self.position)
        if not continued or self.best.monitor != monitor:
            self.best = Best(monitor)
        if keep and not self.best.parameters:
            self.best = replace(self.best, value=None)
        self.batches, self.resumed = batches, False
        self.taken()

    def taken(self) -> None:
        """All batches so far have been trained on, or refused; steps by hand leave a loaded position."""
        if not self.resumed:
            self.position = None if self.batches is None else self.batches.state_dict()

    def go_back(self) -> None:
        """Take the batches after the last step for not taken, where a fit was broken off."""
        if self.batches is not None and self.position is not None:
            self.batches.load_state_dict(self.position)

    def wait_anew(self) -> None:
        """Forget how many validations were not better."""
        self.best = replace(self.best, waited=0)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; the parameters of the best are stored beside them."""
        return {"batches": self.position, **self.best.numbers()}

    def load_state_dict(self, state: Mapping[str, Any], parameters: Mapping[str, Tensor]) -> None:
        """Keep ``state``, with the parameters of its best, for the next fit."""
        self.batches, self.position = None, state.get("batches")
        self.best, self.resumed = Best.of(state, parameters), True
