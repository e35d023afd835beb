"""The search: rank candidates by predicted cost, check them, time them in turn within a budget.

A candidate's time counts only after its result agreed with the reference. Those that are reached within half
of a problem's time are timed in interleaved rounds, so that a busy moment of the machine falls on all of
them, and compared by their shortest times. The default goes unless something beats it clearly. Given the same
measurements the result is the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from ..emit.torch_operations import Options
from ..errors import CompileError, require_known
from .problem import DEFAULT, Candidate, Key, TuningProblem, shown

EffortName = Literal["quick", "full"]
EFFORTS: tuple[EffortName, ...] = get_args(EffortName)
CANDIDATES = {"quick": 3, "full": 100}
"""Candidates timed beside the default, those with the lowest predicted cost."""
ROUNDS = {"quick": 15, "full": 50}
"""Times that each is measured at most."""
TOGETHER = 16
"""Candidates that are compiled at once."""
CHECKED = 0.5
"""Share of a problem's time for compiling and checking; candidates after that are not reached."""
FEWEST_ROUNDS = 3
"""Rounds that a choice needs; a problem that the budget does not last for keeps its default."""
GAIN = 0.97
"""A candidate is chosen if it takes less than this share of the default's time: below, noise would choose."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Trial:
    """What became of one candidate: its times, or why it was rejected; neither if it was not reached."""

    options: Options
    predicted: float
    seconds: float | None = None
    """The shortest of its times."""
    rejected: str | None = None


@dataclass(frozen=True)
class Outcome:
    """The choice for one problem; ``uses`` instructions share it."""

    key: Key
    options: Options
    trials: tuple[Trial, ...]
    uses: int = 1
    note: str = ""

    @property
    def default_seconds(self) -> float:
        """The default's time."""
        return self._seconds(DEFAULT)

    @property
    def seconds(self) -> float:
        """The chosen candidate's time."""
        return self._seconds(self.options)

    def _seconds(self, options: Options) -> float:
        return next(t.seconds for t in self.trials if t.options == options and t.seconds)


@dataclass
class Found:
    """All outcomes so far, and whether the search came to its end."""

    outcomes: list[Outcome] = field(default_factory=list)
    unreached: list[Key] = field(default_factory=list)
    """Problems without a choice: the budget was spent, or the search was interrupted."""
    interrupted: bool = False


Report = Callable[[Outcome], None]


def search(
    problems: Sequence[TuningProblem],
    effort: str = "quick",
    budget: float = 60.0,
    report: Report = lambda outcome: None,
    clock: Clock = time.perf_counter,
) -> Found:
    """Choose a candidate for each problem within ``budget`` seconds; ``report`` is called after each.

    The problems that predict to cost most come first, and each may use its share of what is left. A
    ``KeyboardInterrupt`` ends the search; what was chosen by then is returned. Raises
    :class:`~gncompile.errors.CompileError` for an unknown effort or a budget that is not positive.
    """
    check_effort(effort, budget)
    end = clock() + budget
    found = Found()
    waiting = sorted(problems, key=weight, reverse=True)
    while waiting:
        problem, left = waiting[0], end - clock()
        # A small problem's rounds cost as much as the clock needs, so none gets less than an equal part.
        share = left * max(weight(problem) / sum(map(weight, waiting)), 1 / len(waiting))
        try:
            outcome = solve(problem, effort, clock() + share, end, clock) if left > 0 else None
        except KeyboardInterrupt:
            found.interrupted = True
            break
        finally:
            problem.release()
        waiting.pop(0)
        if outcome is None:
            found.unreached.append(problem.key)
            continue
        found.outcomes.append(outcome)
        try:
            report(outcome)
        except KeyboardInterrupt:
            found.interrupted = True
            break
    found.unreached += [problem.key for problem in waiting]
    return found


def check_effort(effort: str, budget: float) -> None:
    """Raise unless the effort is known and the budget positive."""
    require_known("effort", effort, EFFORTS)
    if not budget > 0:
        raise CompileError(
            f"a budget of {budget:g} s", instead="give a positive time, as --budget 60s"
        )


def weight(problem: TuningProblem) -> float:
    """Predicted seconds of all uses of a problem by default."""
    return problem.uses * problem.candidates[0].predicted


def solve(
    problem: TuningProblem, effort: str, own_end: float, end: float, clock: Clock
) -> Outcome | None:
    """The choice for one problem, by rounds until ``own_end``; None if those until ``end`` are too few."""
    timed = ranked(problem.candidates, CANDIDATES[effort])
    now = clock()
    checked = _checked(problem, timed, now + CHECKED * (own_end - now), clock)
    rejected = {place: wrong for place, wrong in checked.items() if wrong is not None}
    right = [place for place in checked if place not in rejected]
    best = dict.fromkeys(right, float("inf"))
    rounds = 0
    # A default that is rejected leaves nothing to compare with, and nothing safe to choose.
    while 0 in best and rounds < ROUNDS[effort]:
        if clock() >= (end if rounds < FEWEST_ROUNDS else own_end):
            break
        # Every other round goes backwards, so that no candidate gains from its place.
        for place in right if rounds % 2 == 0 else right[::-1]:
            best[place] = min(best[place], problem.measure(timed[place]))
        rounds += 1
    if rounds < FEWEST_ROUNDS:
        return None
    trials = [
        Trial(c.options, c.predicted, best.get(place), rejected.get(place))
        for place, c in enumerate(timed)
    ]
    return Outcome(problem.key, _chosen(timed, best), tuple(trials), problem.uses)


def _checked(
    problem: TuningProblem, timed: Sequence[Candidate], end: float, clock: Clock
) -> dict[int, str | None]:
    """What is wrong with each candidate that is reached before ``end``; the first ones are in any case."""
    checked: dict[int, str | None] = {}
    for first in range(0, len(timed), TOGETHER):
        if checked and clock() >= end:
            break
        together = timed[first : first + TOGETHER]
        problem.prepare(together)
        for place, candidate in enumerate(together, start=first):
            if place > 1 and clock() >= end:
                return checked
            checked[place] = problem.check(candidate)
    return checked


def ranked(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The default, then the ``count`` others with the lowest predicted cost; equal ones in given order."""
    default, *others = candidates
    return [default, *sorted(others, key=lambda c: c.predicted)[:count]]


def _chosen(timed: Sequence[Candidate], best: dict[int, float]) -> Options:
    """The fastest candidate if it is clearly faster than the default; of equal ones the first."""
    fastest = min(best, key=lambda place: best[place])
    return timed[fastest].options if best[fastest] < GAIN * best[0] else timed[0].options


def line(outcome: Outcome) -> str:
    """``symmetric_product 1000x784 float32: block=384, 1.21 times as fast``."""
    if outcome.options == DEFAULT:
        return f"{outcome.key}: default kept"
    ratio = outcome.default_seconds / outcome.seconds
    return f"{outcome.key}: {shown(outcome.options)}, {ratio:.2f} times as fast"
