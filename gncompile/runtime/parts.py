"""The part of a batch that one of many processes has: how many of its samples, and which.

A batch is read in one order by all processes together. Factors are made of the last F of its samples and
quadratic models of the first Q, and a process has those of its samples that are among them: so results do not
depend on who has which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from ..program.collectives import SUM


@dataclass(frozen=True, eq=False)
class Part:
    """This process's samples of a batch.

    ``whole`` are the counts of all processes together, by dimension of samples; ``places`` are those of this
    process's samples in the order in which the batch is read, ascending.
    """

    whole: Mapping[str, int] = field(default_factory=dict)
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @cached_property
    def _counts(self) -> dict[str, int]:
        return {rows: len(self._within(rows)) for rows in self.whole}

    def _within(self, rows: str) -> Tensor:
        """The places of its samples among those of a dimension."""
        first = self.whole["N"] - self.whole[rows] if rows == "F" else 0
        inside = (self.places >= first) & (self.places < first + self.whole[rows])
        return self.places[inside] - first

    def positions(self, rows: str) -> Tensor | None:
        """The rows of the whole batch's draws that are this process's; None for all.

        Where it has none of a dimension, the first stands in.
        """
        if self is ALL:
            return None
        found = self._within(rows)
        return found if len(found) else torch.zeros(1, dtype=torch.long)

    def weight(self, over: str) -> float:
        """This process's share of the samples of a dimension; for sums 1, without samples 0."""
        if self is ALL:
            return 1.0
        if over == SUM:
            return float(len(self.places) > 0)
        return self._counts[over] / self.whole[over]

    def shards(self, count: int) -> list[Part]:
        """Parts of this one, each with every ``count``-th of its samples."""
        return [Part(self.whole, self.places[first::count]) for first in range(count)]

    @property
    def dims(self) -> dict[str, int]:
        """The dimensions that a program is bound to; a row of weight 0 stands in where there is no sample."""
        return {rows: max(1, count) for rows, count in self._counts.items()}


ALL = Part()
"""The whole batch: what one process has, or one that works for itself."""
