"""The whole step with and without tuned settings: the same update, and whether it is slower."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..losses.examples import example_target
from ..losses.targets import mapped

if TYPE_CHECKING:
    from ..training.trainer import Trainer

Clock = Callable[[], float]
PAIRS = 12, 100
"""Steps timed of each, in turn, at least and at most."""
TOLERANCE = 0.05
"""Allowed difference of the updates, relative to the update.

The variants differ in rounding only, but a damped inverse multiplies that by its condition number, in float32
up to about 1e5 at the least damping; a wrong variant errs by the update's own size.
"""


@dataclass(frozen=True)
class StepComparison:
    """How much faster a step is when tuned, and how far the updates differ.

    ``ratio`` is the median over pairs of steps, one default and one tuned, of the default's time over the
    tuned one's: what slows the machine for longer than a step falls on both. ``error`` is its standard
    error, ``default`` and ``tuned`` are the shortest times in seconds.
    """

    default: float
    tuned: float
    ratio: float
    error: float
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether both make the same update, but for rounding."""
        return self.difference <= TOLERANCE

    @property
    def kept(self) -> bool:
        """Whether the tuned step agrees and is not slower."""
        return self.agrees and self.ratio >= 1

    def __str__(self) -> str:
        if not self.agrees:
            return f"the updates differ by {self.difference:.2g} of their size"
        return (
            f"tuned {self.ratio:.3f} ± {self.error:.3f} times as fast "
            f"(shortest {self.default * 1e3:.1f} ms by default, {self.tuned * 1e3:.1f} ms tuned)"
        )


def compare(
    default: Trainer,
    tuned: Trainer,
    samples: int,
    end: float,
    clock: Clock = time.perf_counter,
) -> StepComparison:
    """Step both trainers, which start from equal states and are used up, on one random batch.

    Pairs of steps begin until the time ``end``. Both steps of a pair do the same work. On a CUDA device each
    is waited for, and all but the first of a kind are replayed as they were captured, as in training.
    """
    clock = _waiting(clock, default.device)
    x, y = random_batch(default, samples)
    before = _parameters(default)
    both = default, tuned
    for trainer in both:
        trainer.step(x, y)
    update = _parameters(default) - before
    scale = max(float(update.norm()), torch.finfo(update.dtype).tiny)
    difference = float((_parameters(tuned) - _parameters(default)).norm()) / scale
    times: list[tuple[float, float]] = []
    fewest, most = PAIRS
    while len(times) < fewest or (len(times) < most and clock() < end):
        pair = [0.0, 0.0]
        # Every other pair begins with the other one, so that neither gains from its place.
        for which in (0, 1) if len(times) % 2 == 0 else (1, 0):
            start = clock()
            both[which].step(x, y)
            pair[which] = clock() - start
        times.append((pair[0], pair[1]))
    return _compared(times, difference)


def _waiting(clock: Clock, device: torch.device) -> Clock:
    """A clock that is read when the device has done all that was begun."""
    if device.type != "cuda":
        return clock

    def now() -> float:
        torch.cuda.synchronize(device)
        return clock()

    return now


def _compared(times: Sequence[tuple[float, float]], difference: float) -> StepComparison:
    logs = [math.log(default / tuned) for default, tuned in times]
    middle = statistics.median(logs)
    # For normal noise: σ is 1.48 median deviations, and a median's error 1.25 σ/√n.
    spread = 1.48 * statistics.median(abs(log - middle) for log in logs)
    error = 1.25 * spread / math.sqrt(len(logs))
    default, tuned = (min(column) for column in zip(*times, strict=True))
    return StepComparison(default, tuned, math.exp(middle), error, difference)


def random_batch(trainer: Trainer, samples: int) -> tuple[tuple[torch.Tensor, ...], Any]:
    """Normal inputs and targets that the loss accepts, where the trainer computes."""
    x, y = _random_batch(trainer, samples)
    return tuple(each.to(trainer.device) for each in x), mapped(lambda t: t.to(trainer.device), y)


def _random_batch(trainer: Trainer, samples: int) -> tuple[tuple[torch.Tensor, ...], Any]:
    generator = torch.Generator().manual_seed(0)
    graph, loss, dtype = trainer.traced.graph, trainer.loss_function, trainer.dtype
    inputs = tuple(
        torch.randn(samples, *node.shape, generator=generator, dtype=dtype)
        for node in trainer.traced.inputs
    )
    return inputs, example_target(loss, samples, graph.output.shape, generator, dtype)


def _parameters(trainer: Trainer) -> torch.Tensor:
    """All trained parameters as one vector, copied."""
    return torch.cat([p.detach().flatten() for p in trainer.trained().values()]).clone()
