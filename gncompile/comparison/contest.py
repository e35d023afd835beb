"""Tasks × optimisers × seeds, each run made once and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..environment import environment
from .optimisers import Optimiser, Setting
from .running import Budget, Clock, run
from .store import Run, file_of, read, spelled, write
from .task import Task

Report = Callable[[str], None]


@dataclass(frozen=True)
class Contest:
    """How runs are made: the same budget and seeds for all, results in ``folder``.

    The grid of an optimiser is searched at the first seed, with the whole budget for every point of it; its
    best setting, by the final training loss, is run at the other seeds too. Without ``search`` the grid's
    first entry, the recommended one, is run only. A run kept with another clock is made again.
    """

    folder: Path
    budget: Budget
    seeds: Sequence[int] = (0, 1, 2)
    clock: Clock = "wall"
    search: bool = True
    report: Report = print
    machine: Mapping[str, str] = dataclasses.field(default_factory=environment)
    """Versions and machine, kept with every run."""

    def hold(self, task: Task, optimisers: Sequence[Optimiser]) -> list[Run]:
        """All runs of one task, those found in the folder included."""
        runs: list[Run] = []
        for optimiser in optimisers:
            runs += self._of_one(task, optimiser)
        return runs

    def _of_one(self, task: Task, optimiser: Optimiser) -> list[Run]:
        first = self.seeds[0]
        if reason := optimiser.refusal(task):
            self.report(f"{task.name}: {optimiser.name} is not run: {reason}")
            return [Run(task.name, optimiser.name, {}, first, str(self.budget), "not run", reason)]
        grid = optimiser.grid if self.search else optimiser.grid[:1]
        searched = [self._run(task, optimiser, setting, first) for setting in grid]
        best = min(searched, key=lambda each: each.final)
        if best.status != "done":
            return searched
        return searched + [
            self._run(task, optimiser, best.setting, seed) for seed in self.seeds[1:]
        ]

    def _run(self, task: Task, optimiser: Optimiser, setting: Setting, seed: int) -> Run:
        path = file_of(self.folder, task.name, optimiser.name, setting, seed, str(self.budget))
        if path.is_file() and (kept := read(path)).environment["clock"] == self.clock:
            return kept
        made = run(task, optimiser, setting, seed, self.budget, self.clock)
        label = f"{task.name}: {optimiser.name} {spelled(setting)}, seed {seed}"
        if made.status == "failed":
            self.report(f"{label}: {made.note}")
            return made  # not kept: it costs nothing to try again when the reason is gone
        conditions = {**self.machine, "clock": self.clock}
        made = dataclasses.replace(made, environment=conditions)
        write(self.folder, made)
        self.report(
            f"{label}: {made.status}, {made.points[-1].train:.6g} after {made.seconds:.1f} s"
        )
        return made
