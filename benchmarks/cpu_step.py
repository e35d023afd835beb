"""The time of a training step on this CPU: ``python -m benchmarks.cpu_step``; README.md explains the rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from .compare import Check, checks
from .contestants import AUTOGRAD, BACKPACK_KFRA, OUR_KFRA, OUR_STEP, contestants
from .machine import environment
from .problems import WIDTHS, LossName, ModelName, Problem
from .timing import Clock, ClockOption, Contestant, JsonOption, Timing, measure

AIMS = {OUR_KFRA: 0.8, OUR_STEP: 1.1}
"""Largest time wanted as a multiple of BackPACK's KFRA, by row."""


@dataclass
class Report:
    """Checks and, if all of them hold, times."""

    problem: Problem
    checks: list[Check]
    clock: Clock = "wall"
    rows: dict[str, tuple[Contestant, Timing]] = field(default_factory=dict)

    @property
    def correct(self) -> bool:
        """Whether every check holds; without that there are no times."""
        return all(check.holds for check in self.checks)

    def ratio(self, name: str, baseline: str) -> float | None:
        """Median over the baseline's median; None where the baseline was not run."""
        if baseline not in self.rows:
            return None
        return self.rows[name][1].median / self.rows[baseline][1].median

    def aims(self) -> list[str]:
        """One line for each aim that can be judged here."""
        lines = []
        for name, aim in AIMS.items():
            ratio = self.ratio(name, BACKPACK_KFRA)
            if ratio is not None:
                verdict = "met" if ratio <= aim else "MISSED"
                lines.append(f"{verdict:<7}{name}: {ratio:.2f} × BackPACK's KFRA, aim ≤ {aim:.2f}")
        return lines

    def table(self) -> Table:
        """The times, with what they are measured against."""
        table = Table(title=self.title)
        table.add_column("")
        for header in (
            "median ms",
            "min",
            "max",
            "× BackPACK KFRA",
            "× autograd",
            "GFLOP",
            "GFLOP/s",
        ):
            table.add_column(header, justify="right")
        for name, (contestant, timing) in self.rows.items():
            ratios = [self.ratio(name, baseline) for baseline in (BACKPACK_KFRA, AUTOGRAD)]
            numbers = [timing.median * 1e3, timing.fastest * 1e3, timing.slowest * 1e3]
            gflop = contestant.flops / 1e9
            table.add_row(
                name,
                *(f"{ms:.1f}" for ms in numbers),
                *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
                f"{gflop:.1f}",
                f"{gflop / timing.median:.0f}",
            )
        return table

    @property
    def title(self) -> str:
        """What was run."""
        problem = self.problem
        widths = "-".join(map(str, problem.widths))
        return f"{problem.name} {widths}, {problem.loss}, batch {problem.batch}, float32, {self.clock} time"

    def record(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        problem = self.problem
        return {
            "environment": environment(),
            "clock": self.clock,
            "problem": {
                "name": problem.name,
                "widths": problem.widths,
                "loss": problem.loss,
                "batch": problem.batch,
            },
            "checks": {check.name: check.error for check in self.checks},
            "rows": {
                name: {
                    "median": timing.median,
                    "seconds": timing.seconds,
                    "flops": contestant.flops,
                    "over_backpack_kfra": self.ratio(name, BACKPACK_KFRA),
                    "over_autograd": self.ratio(name, AUTOGRAD),
                }
                for name, (contestant, timing) in self.rows.items()
            },
        }


def benchmark(
    problem: Problem,
    rounds: int,
    progress: Callable[[str], None] = lambda text: None,
    clock: Clock = "wall",
) -> Report:
    """Check, then time; a failed check leaves the report without times."""
    progress("checking")
    report = Report(problem, list(checks(problem)), clock)
    if report.correct:
        progress("compiling")
        entrants = list(contestants(problem))
        timings = measure(entrants, rounds, progress, clock)
        report.rows = {c.name: (c, timings[c.name]) for c in entrants}
    return report


def main(
    model: Annotated[ModelName, typer.Option(help="The autoencoder to train.")] = "mnist",
    loss: Annotated[LossName, typer.Option(help="BackPACK has no KFRA for bce.")] = "mse",
    batch: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 1000,
    threads: Annotated[int, typer.Option(min=1, help="Threads torch may use.")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each row.")] = 7,
    clock: ClockOption = "wall",
    json_file: JsonOption = None,
) -> None:
    """Check our results against autograd and the references, then time them side by side."""
    torch.set_num_threads(threads)
    console = Console()
    problem = Problem.make(model, WIDTHS[model], batch, loss)
    with console.status("") as status:
        report = benchmark(problem, rounds, lambda text: status.update(text), clock)
    for check in report.checks:
        console.print(str(check), highlight=False)
    if not report.correct:
        console.print("[red]no times: what is fast but wrong is not worth timing")
        raise typer.Exit(1)
    console.print(report.table())
    for line in report.aims():
        console.print(line, highlight=False)
    console.print("\n".join(f"{k:<21}{v}" for k, v in environment().items()), highlight=False)
    if json_file:
        json_file.write_text(json.dumps(report.record(), indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
