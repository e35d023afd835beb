"""One batch of all samples, drawn anew from time to time: for points that nobody has to store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .data_sets import Batches


class DrawnBatches(Batches):
    """``draw(number)`` gives the whole batch ``(x, y)`` of a draw; the draw of step k is ``k // every``.

    With ``every=None`` all steps have the draw 0. The number of steps, which a checkpoint holds as the place
    of a loader, tells the draw: a training that goes on does so with the same samples.
    """

    def __init__(
        self, draw: Callable[[int], tuple[Any, Any]], every: int | None, seed: int
    ) -> None:
        x, y = draw(0)
        super().__init__(x, y, batch_size=len(x[0]), seed=seed)
        self._draw, self._every, self._number = draw, every, 0

    def next(self) -> tuple[Any, Any]:
        """The batch of the next step; each is an epoch."""
        number = self.epoch // self._every if self._every else 0
        if number != self._number:
            self.x, self.y = self._draw(number)
            self._number = number
        self._place = self.epoch + 1, 0
        return self.x, self.y

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Continue where ``state`` was taken; the draw that it stood in is made when it is asked for."""
        super().load_state_dict(state)
        self._number = -1
