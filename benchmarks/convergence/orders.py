"""Whether the order of rows inside a batch matters: the same batches, each rearranged in one of four ways.

A step makes its factors of a part of the batch and its step size of another, so rows in an order could be
unlike the rest. A gradient is the same in every order; what differs beyond rounding is due to the parts.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from gncompile.app.comparison.contest import Contest
from gncompile.app.comparison.optimisers import (
    DEFAULTS,
    OPTIMISERS,
    Optimiser,
    Setting,
    Steps,
)
from gncompile.app.comparison.task import Pair, Task
from gncompile.base.files import atomic_write
from gncompile.base.tables import table

GROUPS = 10
"""Groups of equal size by the first target, where targets are no classes."""
POINTS = 4
"""Evaluations in a run besides the first."""


def groups(y: Tensor) -> Tensor:
    """The class of each row, or its decile by the first target."""
    if not y.is_floating_point():
        return y
    first = y.reshape(len(y), -1)[:, 0]
    return first.argsort(stable=True).argsort(stable=True) * GROUPS // len(y)


def alternating(y: Tensor) -> Tensor:
    """Rows with the groups in turn, as long as they last."""
    group = groups(y)
    by_group = group.argsort(stable=True)
    counts = torch.bincount(group)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rounds = torch.arange(len(y)) - starts
    return by_group[rounds.argsort(stable=True)]


ORDERS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "shuffled": lambda x, y: torch.arange(len(y)),  # as batches are drawn
    "sorted": lambda x, y: x.reshape(len(x), -1).sum(dim=1).argsort(stable=True),
    "class by class": lambda x, y: groups(y).argsort(stable=True),
    "alternating": lambda x, y: alternating(y),
}
"""The rows of a batch in order, by its inputs and targets."""


@dataclass(frozen=True)
class Rearranged:
    """Steps that are given each batch in another order."""

    steps: Steps
    order: Callable[[Tensor, Tensor], Tensor]

    def batches(self, train: Iterable[Pair]) -> Iterator[Pair]:
        return self.steps.batches(train)

    def step(self, x: Tensor, y: Tensor, progress: float) -> int:
        rows = self.order(x, y)
        return self.steps.step(x[rows], y[rows], progress)

    def settle(self, x: Tensor, y: Tensor) -> None:
        self.steps.settle(x, y)


def rearranging(method: str, order: str) -> Optimiser:
    """Our trainer by curvature method, named after the order that its batches have."""
    ours = OPTIMISERS[method]

    def start(task: Task, model: nn.Module, seed: int, setting: Setting) -> Steps:
        return Rearranged(ours.start(task, model, seed, setting), ORDERS[order])

    return replace(ours, name=f"{method}-{order.replace(' ', '-')}", start=start)


@dataclass(frozen=True)
class Losses:
    """Final training losses of one task with batches in one order, one a seed."""

    task: str
    order: str
    losses: tuple[float, ...]


def measure(task: Task, contest: Contest, method: str = "kfra") -> Iterator[Losses]:
    """The losses in every order, the shuffled first; runs are kept by the contest."""
    for order in ORDERS:
        trained = rearranging(method, order)
        runs = [contest.run(task, trained, DEFAULTS, seed) for seed in contest.seeds]
        yield Losses(task.name, order, tuple(run.final for run in runs))


def text(found: Sequence[Losses]) -> str:
    """The mean of the seeds' losses and their range, a row for each order and a column for each task."""
    tasks = list(dict.fromkeys(each.task for each in found))
    rows = [("order", *tasks)]
    for order in ORDERS:
        said = {each.task: _spelled(each.losses) for each in found if each.order == order}
        rows.append((order, *(said.get(task, "") for task in tasks)))
    return table(rows, right=range(1, len(rows[0])))


def _spelled(losses: Sequence[float]) -> str:
    mean, low, high = (f(losses) for f in (statistics.geometric_mean, min, max))
    return f"{mean:.3g} ({low:.3g} to {high:.3g})"


def write(found: Sequence[Losses], folder: Path, budget: str) -> Path:
    """``orders.json`` and ``report.md``."""
    records = [{**vars(each), "losses": list(each.losses)} for each in found]
    about = (
        f"Training loss after {budget}: geometric mean over seeds, and range. The same batches, "
        "the rows of each in the order named."
    )
    atomic_write(
        folder / "report.md", f"# The order of rows\n\n{about}\n\n```text\n{text(found)}\n```\n"
    )
    return atomic_write(folder / "orders.json", json.dumps(records, indent=2) + "\n")
