"""A batch that is trained on again: each step reads it in another order."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from .settings import Settings

Rows = tuple[Tensor, ...]


class Repeats:
    """Shuffles a batch given to one step after another, as in training on the full batch.

    Factors are computed on the last rows of a batch and the quadratic model's curvature on the first.
    Shuffled minibatches bring other samples there with every step; of a batch that stays, most samples would
    never be seen, and where it is sorted those that are seen would stand for the others badly.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._last: weakref.ref[Tensor] | None = None
        self.repeated = False
        """Whether the last step was given the batch of the one before; kept in checkpoints."""

    def note(self, x: Tensor | Rows) -> None:
        """Remember that a step is given ``x``; after a resume the batch counts as what the last one was."""
        first = x if isinstance(x, Tensor) else x[0]
        if self._last is not None:
            self.repeated = self._last() is first
        self._last = weakref.ref(first)

    def order(self, inputs: Rows, target: Tensor, number: int) -> tuple[Rows, Tensor]:
        """Rows of the batch in the order for step ``number``: as they are, unless they came before.

        The order depends on the number only. It costs a copy of the batch.
        """
        count = len(target)
        partly = (
            self._settings.second_order
            and min(self._settings.rows(count)[part] for part in "FQ") < count
        )
        if not (self.repeated and partly):
            return inputs, target
        rows = torch.randperm(count, generator=torch.Generator().manual_seed(number))
        rows = rows.to(target.device, non_blocking=True)
        return tuple(each[rows] for each in inputs), target[rows]

    def resume(self, repeated: bool) -> None:
        """Take the next step's batch for what the last one's was where the state was saved.

        Of a training saved after its first step that is not known: its second step reads the batch as it is.
        """
        self.repeated, self._last = repeated, None
