"""What a comparison found: each optimiser's best setting on each task, and how much sooner it got there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ...base.tables import table
from .optimisers import OPTIMISERS, Family
from .store import Run, spelled

REFERENCE: Family = "first-order"
HEADER = (
    *("optimiser", "setting", "updates", "loss", "validation", "s to reach", "sooner"),
    *("range", "runs", "search s", "setup s"),
)
"""What was found first: where a line is too short, what it cost stands on a second one."""


@dataclass(frozen=True)
class Standing:
    """An optimiser on a task: the runs of its best setting, one a seed, and what the search for it cost."""

    task: str
    optimiser: str
    runs: tuple[Run, ...]
    searched: int
    search_seconds: float

    @property
    def family(self) -> Family:
        """Which kind of optimiser it is."""
        return OPTIMISERS[self.optimiser].family

    @property
    def loss(self) -> float:
        """Median over seeds of the final training loss; infinite if most runs did not end well."""
        return statistics.median(run.final for run in self.runs)

    @property
    def validation(self) -> float:
        """Median over seeds of the final validation loss."""
        return statistics.median(
            run.points[-1].validation if run.status == "done" else math.inf for run in self.runs
        )

    def seconds_to(self, loss: float) -> float:
        """Median over seeds of the seconds to reach a training loss; infinite if most did not."""
        return statistics.median(run.reached(loss) for run in self.runs)


def standings(runs: Iterable[Run]) -> list[Standing]:
    """One for each task and optimiser, in the order in which they first appear.

    The best setting has the lowest median loss among those run at most seeds.
    """
    by_contestant: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_contestant.setdefault((run.task, run.optimiser), []).append(run)
    found = []
    for (task, optimiser), own in by_contestant.items():
        ordered = sorted(own, key=lambda run: spelled(run.setting))
        settings = [tuple(group) for _, group in groupby(ordered, lambda run: spelled(run.setting))]
        best = min(
            settings, key=lambda each: (-len(each), statistics.median(run.final for run in each))
        )
        spent = sum(run.seconds for run in own) - sum(run.seconds for run in best)
        found.append(Standing(task, optimiser, best, len(own), spent))
    return found


@dataclass(frozen=True)
class Reference:
    """The best first-order optimiser of a task: the loss to reach, and its seconds to reach it."""

    optimiser: str
    loss: float
    seconds: float

    def sooner(self, standing: Standing) -> float:
        """How many times sooner ``standing`` reached the loss: 0 if it did not, infinite if it began there.

        NaN where half the seeds of the reference itself did not come to their median loss.
        """
        seconds = standing.seconds_to(self.loss)
        if not math.isfinite(self.seconds):
            return math.nan
        return self.seconds / seconds if seconds > 0 else math.inf


def reference(of_task: Sequence[Standing]) -> Reference | None:
    """That of one task's standings; None where no first-order optimiser ended a run."""
    first_order = [s for s in of_task if s.family == REFERENCE and math.isfinite(s.loss)]
    if not first_order:
        return None
    best = min(first_order, key=lambda standing: standing.loss)
    return Reference(best.optimiser, best.loss, best.seconds_to(best.loss))


def by_task(found: Iterable[Standing]) -> dict[str, list[Standing]]:
    """Standings grouped by task, in order."""
    grouped: dict[str, list[Standing]] = {}
    for standing in found:
        grouped.setdefault(standing.task, []).append(standing)
    return grouped


def text(of_task: Sequence[Standing], width: int | None = None) -> str:
    """The table of one task, best final training loss first, and what did not run."""
    ran = sorted((s for s in of_task if _ran(s)), key=lambda s: s.loss)
    against = reference(of_task)
    rows = [HEADER, *(_row(s, against) for s in ran)]
    lines = [table(rows, right=range(2, len(HEADER)), width=width)]
    if against:
        lines.append(
            f"\nsooner: than {against.optimiser}, the best first-order optimiser, to reach\n"
            f"{against.loss:.6g}, which {_took(against)}"
        )
    lines += [
        f"{s.optimiser}: {run.status}: {run.note}" for s in of_task for run in s.runs if run.note
    ]
    return "\n".join(lines)


def _ran(standing: Standing) -> bool:
    return bool(standing.runs[0].points)


def _row(standing: Standing, against: Reference | None) -> tuple[str, ...]:
    runs = standing.runs
    finals = sorted(run.final for run in runs)
    reached = standing.seconds_to(against.loss) if against else math.inf
    return (
        standing.optimiser,
        spelled(runs[0].setting),
        f"{statistics.median(run.points[-1].updates for run in runs):g}",
        _number(standing.loss),
        _number(standing.validation),
        _number(reached, ".3g", "not reached"),
        _times(against.sooner(standing)) if against and math.isfinite(reached) else "",
        _number(finals[0]) if len(finals) == 1 else f"{_number(finals[0])} … {_number(finals[-1])}",
        str(standing.searched),
        f"{standing.search_seconds:.0f}",
        f"{statistics.median(run.setup for run in runs):.1f}",
    )


def _number(value: float, form: str = ".5g", otherwise: str = "not finite") -> str:
    return format(value, form) if math.isfinite(value) else otherwise


def _took(against: Reference) -> str:
    if math.isfinite(against.seconds):
        return f"took it {against.seconds:.3g} s"
    return "half of its own seeds did not reach"


def _times(sooner: float) -> str:
    """How many times sooner a loss was reached, or why there is no number."""
    if math.isfinite(sooner):
        return f"{sooner:.2f}×" if sooner else "not reached"
    return "-" if math.isnan(sooner) else "at once"


def overview(found: Iterable[Standing], width: int | None = None) -> str:
    """Over all tasks: how much sooner each optimiser was on the median one, and where it ended worse."""
    sooner: dict[str, list[float]] = {}
    worse: dict[str, list[str]] = {}
    for task, standings_of in by_task(found).items():
        against = reference(standings_of)
        if against is None or not math.isfinite(against.seconds):
            continue
        for standing in filter(_ran, standings_of):
            sooner.setdefault(standing.optimiser, []).append(against.sooner(standing))
            if standing.loss > against.loss:
                worse.setdefault(standing.optimiser, []).append(task)
    rows = [("optimiser", "tasks", "median sooner", "least", "worse at the end on")]
    rows += [
        (name, str(len(each)), _times(statistics.median(each)), _times(min(each)),
         ", ".join(worse.get(name, ())) or "none")
        for name, each in sooner.items()
    ]  # fmt: skip
    return table(rows, right=(1, 2, 3), width=width) if len(rows) > 1 else ""


def records(found: Iterable[Standing]) -> list[dict[str, Any]]:
    """The standings as plain data for JSON; null stands for infinite."""

    def number(value: float) -> float | None:
        return value if math.isfinite(value) else None

    plain = []
    for task, standings_of in by_task(found).items():
        against = reference(standings_of)
        plain += [
            {
                "task": task,
                "optimiser": s.optimiser,
                "setting": dict(s.runs[0].setting),
                "status": s.runs[0].status,
                "note": s.runs[0].note,
                "seeds": [run.seed for run in s.runs],
                "runs": s.searched,
                "search_seconds": s.search_seconds,
                "losses": [number(run.final) for run in s.runs],
                "loss": number(s.loss),
                "validation": number(s.validation),
                "seconds_to_reference": number(s.seconds_to(against.loss)) if against else None,
                "sooner": number(against.sooner(s)) if against else None,
            }
            for s in standings_of
        ]
    return plain
