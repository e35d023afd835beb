"""Tasks × optimisers × seeds, each run made once and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...base.environment import environment
from .optimisers import Optimiser, Setting
from .running import POINTS, Budget, Clock, run
from .store import Run, file_of, read, spelled, write
from .task import Task

Report = Callable[[str], None]


@dataclass(frozen=True)
class Contest:
    """How runs are made: the same budget and seeds for all, each kept in the folder ``runs``.

    The grid of an optimiser is searched at the first seed, with the whole budget for every point that is
    tried: first the recommended one, then those next to the best so far until none of them is better. The
    best setting, by the final training loss, is run at the other seeds too. Without ``search`` only the
    recommended one is run. A run kept with another clock is made again.
    """

    runs: Path
    budget: Budget
    seeds: Sequence[int] = (0, 1, 2)
    clock: Clock = "wall"
    search: bool = True
    points: int = POINTS
    """Evaluations in a run besides the first."""
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
        if reason := optimiser.refusal(task):
            self.report(f"{task.name}: {optimiser.name} is not run: {reason}")
            return [
                Run(
                    task.name,
                    optimiser.name,
                    {},
                    self.seeds[0],
                    str(self.budget),
                    "not run",
                    reason,
                )
            ]
        searched = self._searched(task, optimiser)
        best = min(searched, key=_final)
        if best.status != "done":
            return searched
        return searched + [self.run(task, optimiser, best.setting, seed) for seed in self.seeds[1:]]

    def _searched(self, task: Task, optimiser: Optimiser) -> list[Run]:
        """The runs of the search, the recommended setting's first."""
        untried = list(optimiser.grid)
        tried: list[Run] = []

        def attempt(settings: Sequence[Setting]) -> None:
            for setting in settings:
                untried.remove(setting)
                tried.append(self.run(task, optimiser, setting, self.seeds[0]))

        attempt(untried[:1])
        while self.search:
            best = min(tried, key=_final)
            near = neighbours(best.setting, optimiser.grid)
            # Where nothing has a finite loss yet, no direction is better than another.
            attempt([each for each in untried if each in near or best.status != "done"])
            if min(tried, key=_final) is best:
                break
        return tried

    def run(self, task: Task, optimiser: Optimiser, setting: Setting, seed: int) -> Run:
        """One run, made or found."""
        path = file_of(self.runs, task.name, optimiser.name, setting, seed, str(self.budget))
        if path.is_file():
            kept = read(path)
            # Names that differ may share a file.
            same = (kept.task, kept.optimiser, kept.seed) == (task.name, optimiser.name, seed)
            if same and kept.environment.get("clock") == self.clock:
                return kept
        made = run(task, optimiser, setting, seed, self.budget, self.clock, self.points)
        label = f"{task.name}: {optimiser.name} {spelled(setting)}, seed {seed}"
        if made.status == "failed":
            self.report(f"{label}: {made.note}")
            return made  # not kept: it costs nothing to try again when the reason is gone
        conditions = {**self.machine, "clock": self.clock}
        made = dataclasses.replace(made, environment=conditions)
        write(self.runs, made)
        self.report(
            f"{label}: {made.status}, {made.points[-1].train:.6g} after {made.seconds:.1f} s"
        )
        return made


def _final(run: Run) -> float:
    return run.final


def neighbours(setting: Setting, grid: Sequence[Setting]) -> list[Setting]:
    """Settings of a grid that differ from ``setting`` in one entry, by one place among the grid's values."""

    def places_apart(other: Setting) -> int:
        return sum(
            abs(order[key].index(other[key]) - order[key].index(setting[key])) for key in order
        )

    order = {key: sorted({each[key] for each in grid}) for key in setting}
    return [other for other in grid if places_apart(other) == 1]
