"""Where the time of a step goes: every statement of the emitted source, timed on its own.

``python -m benchmarks.statements [--top 15]`` runs the phases of a KFRA step and prints the slowest
statements with their line in the emitted file. Timing them one by one adds a microsecond to each.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from gncompile.program.specs import SAMPLES

from .compiled import Compiled
from .problems import WIDTHS, ModelName, Problem
from .timing import CLOCKS, Clock, ClockOption

STEP = ("gradient", "curvature", "share_inputs", "average", "invert", "direction", "quadratic",
        "update", "predict", "evaluate", "judge", "adapt")  # fmt: skip


@dataclass
class Statement:
    """One statement of an emitted phase and its times in seconds, one a run."""

    phase: str
    line: int
    text: str
    seconds: list[float] = field(default_factory=list)

    @property
    def fastest(self) -> float:
        """The smallest time; other work on the machine can only add to it."""
        return min(self.seconds)


class Rewriter(ast.NodeTransformer):
    """Rewrites ``statement`` in a phase as ``start = clock(); statement; record(line, start)``."""

    def __init__(self) -> None:
        self.statements: dict[int, Statement] = {}

    def instrument(self, tree: ast.Module) -> ast.Module:
        """The phases are the functions inside ``bind``."""
        (bind,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "bind")
        for phase in [n for n in bind.body if isinstance(n, ast.FunctionDef)]:
            phase.body = [
                timed for statement in phase.body for timed in self._timed(phase.name, statement)
            ]
        return ast.fix_missing_locations(tree)

    def _timed(self, phase: str, statement: ast.stmt) -> Iterator[ast.stmt]:
        line = statement.lineno
        self.statements[line] = Statement(phase, line, ast.unparse(statement))
        yield from ast.parse("_start = _clock()").body
        yield statement
        yield from ast.parse(f"_record({line}, _start)").body


def profile(
    compiled: Compiled, phases: tuple[str, ...], runs: int, clock: Clock = "wall"
) -> list[Statement]:
    """Times of all statements of ``phases`` that the step has, over ``runs`` steps after one to warm up."""
    source = compiled.executable.source_file
    assert source is not None, "the reference backend has no statements"
    rewriter = Rewriter()
    now = CLOCKS[clock]
    seconds: dict[int, list[float]] = defaultdict(list)
    names: dict[str, Any] = {
        "_clock": now,
        "_record": lambda line, start: seconds[line].append(now() - start),
    }
    tree = rewriter.instrument(ast.parse(source.read_text()))
    exec(compile(tree, str(source), "exec"), names)
    # The same memory, so the timed functions write into the buffers of the bound step.
    compiled.executable.load(compiled.inputs, compiled.target)
    step = SimpleNamespace(**names)
    functions, _ = step.bind(
        compiled.executable.memory, *(compiled.costs.dims[d] for d in (*SAMPLES, "S"))
    )
    for _ in range(runs + 1):
        for phase in phases:
            if phase in functions:  # depends on the settings
                functions[phase]()
    for line, statement in rewriter.statements.items():
        statement.seconds = seconds[line][1:]
    return [s for s in rewriter.statements.values() if s.phase in phases]


def by_phase(statements: list[Statement]) -> dict[str, float]:
    """Seconds of each phase: the sum of its statements."""
    totals: dict[str, float] = defaultdict(float)
    for statement in statements:
        totals[statement.phase] += statement.fastest
    return dict(totals)


def main(
    model: Annotated[ModelName, typer.Option()] = "mnist",
    batch: Annotated[int, typer.Option(min=1)] = 1000,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    runs: Annotated[int, typer.Option(min=1)] = 5,
    clock: ClockOption = "wall",
    top: Annotated[int, typer.Option(min=1, help="Statements to print.")] = 15,
) -> None:
    """Time each emitted statement of a KFRA step and print the slowest."""
    torch.set_num_threads(threads)
    problem = Problem.make(model, WIDTHS[model], batch, "bce")
    compiled = Compiled.of(problem)
    statements = profile(compiled, STEP, runs, clock)
    console = Console()
    console.print(phase_table(statements))
    console.print(statement_table(statements, top, compiled.executable.source_file))


def phase_table(statements: list[Statement]) -> Table:
    """Milliseconds by phase; a step runs ``invert`` and ``adapt`` (with evaluation) only when due."""
    table = Table("phase", title="phases")
    table.add_column("ms", justify="right")
    for phase, seconds in by_phase(statements).items():
        table.add_row(phase, f"{seconds * 1e3:.1f}")
    return table


def statement_table(statements: list[Statement], top: int, source: Path | None) -> Table:
    """The slowest statements."""
    table = Table("phase", "line", title=f"slowest statements of {source}")
    table.add_column("ms", justify="right")
    table.add_column("statement", overflow="fold")
    for s in sorted(statements, key=lambda s: -s.fastest)[:top]:
        table.add_row(s.phase, str(s.line), f"{s.fastest * 1e3:.1f}", s.text)
    return table


if __name__ == "__main__":
    typer.run(main)
