"""The phases of a step in one list: what each may use, when it is due, and how often it runs.

Whatever runs, counts or describes a step reads this list: the builder, which emits into its phases, the
trainer, the steps ahead of the host, costs, summaries and reports. A solver puts its own phases between the
gradient and the quadratic model (``solvers/``). A program has the phases of the list that were emitted for
its settings (``StepProgram.step``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from ..base.settings import Settings
from .timetable import Due, cycle, due, settled


class Stage(Enum):
    """The parts of a step, in order; a host that looks after its steps does so between them."""

    GRADIENT = auto()
    COMPARISON = auto()
    MEASUREMENT = auto()
    """What the batch tells the solver; states are not written."""
    KEEPING = auto()
    """What the solver keeps of it."""
    DIRECTION = auto()
    """Direction and step sizes."""
    UPDATE = auto()
    JUDGEMENT = auto()
    """What the step did to the loss."""
    DAMPING = auto()
    """The dampings after it."""
    REPORT = auto()
    FAILURE = auto()


class Repeat(Enum):
    """How often a step that is to run a phase runs it."""

    ONCE = auto()
    COLUMNS = auto()
    """Once for every chunk of columns, or every draw; the phase is told where the chunk starts."""
    DAMPINGS = auto()
    """Where γ is chosen once for each that is tried, and for the chosen one."""
    PRODUCTS = auto()
    """Once for every curvature product that a solver asks for."""


When = Callable[[Due], bool]


def always(now: Due) -> bool:
    """In every step."""
    return True


def where_noise_leads(now: Due) -> bool:
    """Only the host can tell."""
    return now.plain and not now.by_layer


def after_failure(now: Due) -> bool:
    """Not by the timetable."""
    return False


@dataclass(frozen=True)
class Phase:
    """A named part of a step.

    It may use values of the phases it ``sees``, which ran before it at the same parameters. ``when`` it is
    due is a question to the timetable, ``repeat`` how often such a step runs it.
    """

    name: str
    stage: Stage = Stage.GRADIENT
    sees: tuple[str, ...] = ()
    when: When = always
    repeat: Repeat = Repeat.ONCE


DIRECTION = "direction"
"""The solver's phase that makes Δ of ∇, its last."""
ACCELERATION = "acceleration"
"""The phase that bends the step along Δ (``derivation/acceleration.py``)."""

_SOLVED = ("gradient", DIRECTION)

_BEGIN = (
    # The masks of a step, which all that follows reads; or those of a network in evaluation mode.
    Phase("dropout", when=lambda now: now.dropout),
    Phase("no_dropout", when=lambda now: not now.dropout),
    Phase("gradient"),
    Phase("guard", sees=("gradient",)),
    Phase("compare", Stage.COMPARISON, ("gradient",), lambda now: now.comparison),
    Phase("damping_begin", Stage.COMPARISON, when=lambda now: now.factor_damping),
    Phase("first_order", Stage.KEEPING, ("gradient",)),
)

_END = (
    Phase("layer_quadratic", Stage.DIRECTION, _SOLVED, lambda now: now.by_layer, Repeat.DAMPINGS),
    Phase("plain_quadratic", Stage.DIRECTION, _SOLVED, where_noise_leads, Repeat.DAMPINGS),
    Phase(
        "quadratic",
        Stage.DIRECTION,
        _SOLVED,
        lambda now: not (now.by_layer or now.plain),
        Repeat.DAMPINGS,
    ),
    Phase(ACCELERATION, Stage.DIRECTION, _SOLVED),
    Phase("damping_note", Stage.DIRECTION, (), lambda now: now.factor_damping, Repeat.DAMPINGS),
    Phase("damping_end", Stage.DIRECTION, when=lambda now: now.factor_damping),
    Phase("guard_step", Stage.DIRECTION),
    Phase("gradient_noise", Stage.UPDATE, _SOLVED, lambda now: now.noise),
    Phase("average_parameters", Stage.UPDATE, when=lambda now: not now.again),
    Phase("update", Stage.UPDATE, (*_SOLVED, ACCELERATION)),
    # At the new parameters, so these see no phase before the update but to compare with it.
    Phase("trial", Stage.JUDGEMENT, when=lambda now: now.search),
    Phase("judge_trial", Stage.JUDGEMENT, ("gradient", "trial"), lambda now: now.search),
    Phase("predict", Stage.JUDGEMENT, when=lambda now: now.damping and not now.search),
    Phase("evaluate", Stage.JUDGEMENT, ("predict",), lambda now: now.damping and not now.search),
    Phase(
        "judge",
        Stage.JUDGEMENT,
        ("gradient", "evaluate"),
        lambda now: now.damping and not now.search,
    ),
    Phase("guard_change", Stage.JUDGEMENT, when=lambda now: now.damping),
    Phase("search", Stage.DAMPING, when=lambda now: now.search),
    Phase("adapt", Stage.DAMPING, when=lambda now: now.damping and not now.search),
    Phase("restore", Stage.FAILURE, when=after_failure),
    Phase("reject", Stage.FAILURE, when=after_failure),
    Phase("report", Stage.REPORT, ("gradient",)),
)


def step_phases(solver: Iterable[Phase] = ()) -> tuple[Phase, ...]:
    """The phases of a step in order, with those of its ``solver`` in their place."""
    return (*_BEGIN, *solver, *_END)


def due_phases(step: Iterable[Phase], now: Due) -> tuple[Phase, ...]:
    """Those of these phases that are due."""
    return tuple(p for p in step if p.when(now))


def names(phases: Iterable[Phase]) -> tuple[str, ...]:
    """Their names."""
    return tuple(phase.name for phase in phases)


def plan(step: Sequence[Phase], now: Due) -> tuple[str, ...]:
    """The phases that a step runs, in order, those that repeat for each γ as often as it tries one.

    After the three of them ``damping_end`` takes the best, whose direction is made again.
    """
    due_now = due_phases(step, now)
    if not now.factor_damping:
        return names(due_now)
    tried = tuple(p for p in due_now if p.repeat is Repeat.DAMPINGS)
    chosen = tuple(p for p in tried if p.name != "damping_note")
    first = due_now.index(tried[0])
    rest = due_now[first + len(tried) :]
    end = tuple(p for p in rest if p.name == "damping_end")  # which a host that chooses has not
    return names((*due_now[:first], *tried * 3, *end, *chosen, *rest[len(end) :]))


def mean_runs(settings: Settings, step: Sequence[Phase]) -> dict[str, float]:
    """How often a mean step runs each phase that it runs at all, once the first steps are over."""
    if not settings.second_order:
        return dict.fromkeys(names(p for p in step if p.name in ("dropout", "gradient")), 1.0)
    length, since_refresh = cycle(settings), 0
    runs: Counter[str] = Counter()
    first = length * (1 + settled(settings) // length)
    for update in range(first, first + length):
        now = due(settings, update, since_refresh)
        since_refresh = 0 if now.fresh else since_refresh + 1
        runs.update(plan(step, now))
    return {phase: count / length for phase, count in runs.items()}


def first_steps(settings: Settings, step: Sequence[Phase]) -> dict[str, int]:
    """For phases that only the first steps run: how many steps these are."""
    later = mean_runs(settings, step)
    due_when = [replace(due(settings, n, 0), factors=True) for n in range(settled(settings))]
    last = {p.name: [n for n, now in enumerate(due_when) if p.when(now)] for p in step}
    return {name: steps[-1] + 1 for name, steps in last.items() if steps and name not in later}
