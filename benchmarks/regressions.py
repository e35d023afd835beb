"""Regressions of ``benchmarks.solvers``, and the clock of those who solve them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import gncompile

from .convergence.networks import Build, mlp, seeded
from .convergence.problems import PROBLEMS as CONTEST
from .convergence.problems import friedman, half_squares

EVERY = 0.2
"""CPU seconds between two looks at the whole data's loss, where steps are on batches."""


@dataclass(frozen=True)
class Problem:
    """Data and network; who comes to a low mean loss first?"""

    name: str
    build: Build
    x: Tensor
    y: Tensor
    limit: float
    """CPU seconds."""
    batch: int = 0
    """Samples of a step, for those that take batches; 0 for all."""

    def loss(self, model: nn.Module) -> float:
        """Half the squared error, summed over outputs and averaged over samples."""
        with torch.no_grad():
            return float(half_squares(model(self.x), self.y))

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Without end."""
        if not self.batch:
            while True:
                yield self.x, self.y
        yield from gncompile.data.Batches(self.x, self.y, self.batch, seed=seed).forever()


def curve() -> tuple[Tensor, Tensor]:
    """``sin 5x + ½ cos 17x`` at 200 points of [-1, 1], float64."""
    x = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    return x, torch.sin(5 * x) + torch.cos(17 * x) / 2


def small_table() -> tuple[Tensor, Tensor]:
    """2,000 rows of Friedman's table, float64."""
    data = friedman(2500)
    return data.train_x.double(), data.train_y.double()


def problems() -> list[Problem]:
    """The contest's curve and table, and a small one of each."""
    stiff, big = CONTEST["stiff"].data(), CONTEST["table"].data()
    double = torch.float64
    return [
        Problem("stiff curve 1-30-30-1", CONTEST["stiff"].build, stiff.train_x, stiff.train_y, 10),
        Problem("curve 1-20-20-1", seeded(lambda: mlp(1, 20, 20, 1), double), *curve(), 10),
        Problem("table 10-32-1", seeded(lambda: mlp(10, 32, 1), double), *small_table(), 10),
        Problem(
            "table 10-128-64-1", CONTEST["table"].build, big.train_x, big.train_y, 30,
            CONTEST["table"].batch_size,
        ),
    ]  # fmt: skip


class Ended(Exception):
    """The time is over."""


@dataclass
class Clock:
    """CPU seconds of one contestant on one problem, and the least loss it has come to."""

    problem: Problem
    compiled: float = 0.0
    """Seconds of compiling, which are not counted."""
    spent: float = 0.0
    told: float = math.inf
    path: list[tuple[float, float]] = field(default_factory=list)
    """Seconds and loss, wherever it was less than before."""
    evaluations: int = 0
    _since: float = field(default=0.0, repr=False)
    _looked: float = field(default=0.0, repr=False)

    def begin(self) -> None:
        self._since = time.process_time()

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.spent += time.process_time() - self._since
        yield
        self.begin()

    def note(self, loss: float) -> None:
        """A loss of all data that the contestant has just seen."""
        with self.paused():
            self.evaluations += 1
            self.told = loss
            if loss < self.least:
                self.path.append((self.spent, loss))
            if self.spent > self.problem.limit:
                raise Ended

    @property
    def least(self) -> float:
        """The least loss it has come to."""
        return self.path[-1][1] if self.path else math.inf

    def seconds_to(self, aim: float) -> float:
        """Infinite where it did not come to it."""
        return next((seconds for seconds, loss in self.path if loss <= aim), math.inf)

    def look(self, loss: Callable[[], float]) -> None:
        """The same for one that sees batches only: now and then, while the clock stands still."""
        now = self.spent + time.process_time() - self._since
        if now - self._looked >= EVERY:
            with self.paused():
                self._looked, value = now, loss()
            self.note(value)
