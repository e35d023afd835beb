"""Interleaved timing: every contestant once a round, so that a disturbance meets all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import typer

Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts the seconds all threads computed. On a busy machine it still tells the work of one thread;
with several it also counts their waiting for each other."""

ClockOption = Annotated[
    Clock,
    typer.Option(help="Time passed, or CPU time: with one thread, good on a busy machine."),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write a record here.")]


@dataclass(frozen=True)
class Contestant:
    """Something to time.

    One measurement is the mean of ``cycle`` consecutive calls: a step that refreshes its inverses every
    fifth time is measured over five. ``warm_up`` calls come before the first round. ``flops`` is the
    arithmetic of one call, as counted by ``benchmarks.flops``.
    """

    name: str
    call: Callable[[], object]
    flops: float
    cycle: int = 1
    warm_up: int = 2


@dataclass
class Timing:
    """Seconds a call, one entry a round."""

    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """The middle measurement."""
        return statistics.median(self.seconds)

    @property
    def fastest(self) -> float:
        """The smallest measurement."""
        return min(self.seconds)

    @property
    def slowest(self) -> float:
        """The largest measurement."""
        return max(self.seconds)


def measure(
    contestants: Sequence[Contestant],
    rounds: int,
    progress: Callable[[str], None] = lambda text: None,
    clock: Clock = "wall",
) -> dict[str, Timing]:
    """Warm every contestant up, then time all of them ``rounds`` times in turn."""
    for contestant in contestants:
        progress(f"warming up: {contestant.name}")
        for _ in range(contestant.warm_up):
            contestant.call()
    now = CLOCKS[clock]
    timings = {contestant.name: Timing() for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants:
            progress(f"round {number + 1} of {rounds}: {contestant.name}")
            start = now()
            for _ in range(contestant.cycle):
                contestant.call()
            timings[contestant.name].seconds.append((now() - start) / contestant.cycle)
    return timings
