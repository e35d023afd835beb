"""Where the time of a step goes: every launch of the emitted step alone, as a graph of itself repeated."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any

from gncompile.program.costs import Cost, CostModel
from gncompile.program.launches import schedule
from gncompile.runtime.executable import EmittedStep, Executable
from gncompile.runtime.graphs import uncaptured_phases

from .clock import Call, Clock
from .ours import kernel_cost
from .rows import Entry, Prepared, Row

REPEATS = 10
"""How often a graph repeats a launch, so that starting the graph does not count."""


@dataclass(frozen=True)
class Statement:
    """One statement of an emitted phase: a launch, or a few torch calls."""

    phase: str
    text: str
    code: CodeType
    names: dict[str, Any]

    def __call__(self) -> None:
        exec(self.code, self.names)

    @property
    def stores(self) -> str:
        """The first value it writes, by which the schedule knows it."""
        found = re.search(r"\bwrite_(\w+)|out=(\w+)\)$|^(\w+)\.", self.text)
        return next(filter(None, found.groups()), "") if found else ""


RARE = ("layer_quadratic", "plain_quadratic", "search", "restore", "reject")
"""Phases of the first steps only, of noisy steps and of those that fail, which are left out."""


def statements(executable: Executable) -> Iterator[Statement]:
    """The statements of the bound step's phases, in the order of the file."""
    step = executable.step
    assert isinstance(step, EmittedStep)
    for phase, function in step.phase_functions.items():
        if phase in RARE:
            continue
        variables = inspect.getclosurevars(function)
        names = {**function.__globals__, **variables.nonlocals, "start": 0}
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
        assert isinstance(definition, ast.FunctionDef)
        for statement in definition.body:
            code = compile(ast.Module([statement], []), f"<{phase}>", "exec")
            yield Statement(phase, ast.unparse(statement), code, names)


def entries(executable: Executable, clock: Clock, dims: dict[str, int]) -> Iterator[Entry]:
    """A row a statement; ``dims`` are N, F and Q. Repeating them ruins the state of the step."""
    factorising = uncaptured_phases(executable.program)
    costs = by_first_store(executable, dims)
    for each in statements(executable):
        cost = costs.get((each.phase, each.stores), Cost())
        yield Entry(f"{each.phase}: {each.text[:60]}", _timed(each, cost, clock, factorising))


def _timed(
    each: Statement, cost: Cost, clock: Clock, factorising: frozenset[str]
) -> Callable[[], Prepared]:
    def repeated() -> None:
        for _ in range(REPEATS):
            each()

    def prepare() -> Prepared:
        on_its_own = each.phase in factorising and "linalg." in each.text
        call: Call = repeated if on_its_own else clock.captured(repeated, 2)
        return Prepared(call, cost.flops, cost.bytes, warm_up=1, repeats=REPEATS)

    return prepare


def by_first_store(executable: Executable, dims: dict[str, int]) -> dict[tuple[str, str], Cost]:
    """The cost of each launch under the first value that the emitted launch writes.

    A launch of the schedule is emitted whole, or kernel by kernel: a kernel without a statement of its
    own is counted with the one before.
    """
    program = executable.program
    costs = CostModel(program, dims["N"], rows=dims)
    emitted = {(each.phase, each.stores) for each in statements(executable)}
    found: dict[tuple[str, str], Cost] = {}
    for phase, launches in schedule(program).phases.items():
        for launch in launches:
            place = (phase, launch.kernels[0].stores[0])
            for kernel in launch.kernels:
                own = (phase, kernel.stores[0])
                place = own if own in emitted else place
                found[place] = found.get(place, Cost()) + kernel_cost(kernel, costs)
    return found


def by_phase(rows: list[Row]) -> list[Row]:
    """One row a phase: the sums of its statements that could be timed."""
    phases: dict[str, Row] = {}
    for row in rows:
        name = row.name.partition(":")[0]
        total = phases.setdefault(name, Row(name, [0.0], 0.0, 0.0))
        total.seconds[0] += row.median or 0.0
        total.flops = (total.flops or 0.0) + (row.flops or 0.0)
        total.bytes = (total.bytes or 0.0) + (row.bytes or 0.0)
    return list(phases.values())
