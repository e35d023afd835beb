"""``python -m benchmarks.convergence``: optimisers on problems under equal budgets; see ../README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gncompile.app.comparison.contest import Contest
from gncompile.app.comparison.optimisers import OPTIMISERS, named
from gncompile.app.comparison.report import write_report
from gncompile.app.comparison.running import CLOCKS, POINTS, Budget
from gncompile.app.comparison.store import Run
from gncompile.errors import GncompileError, require_known

from ..machine import environment, installed
from . import alignment, orders, sensitivity
from .problems import PROBLEMS, Problem

ALIGNED = ("classifier", "curves")
"""Problems of the alignment if none are named: few outputs, and a deep network."""
REARRANGED = ("classifier", "table", "image")
"""Problems of the orders if none are named: classes, numbers, and a full batch in the order of an image."""
CHOSEN = {"alignment": ALIGNED, "orders": REARRANGED}
"""Problems by action if none are named; else all."""
ACTIONS = ("run", "alignment", "sensitivity", "orders")


def main(given: list[str] | None = None) -> int:
    """The command; returns the exit status, 1 after an error of ours."""
    options = arguments(given)
    torch.set_num_threads(options.threads)
    try:
        chosen = problems(options.problems or CHOSEN.get(options.action, ()))
        if options.action == "alignment":
            align(chosen, options)
        elif options.action == "sensitivity":
            vary(chosen, options)
        elif options.action == "orders":
            rearrange(chosen, options)
        else:
            compete(chosen, options)
    except GncompileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def compete(chosen: Sequence[Problem], options: argparse.Namespace) -> None:
    """Make the runs that are missing, and after every problem write the tables of all that there are."""
    machine = {**environment(), "pytorch_optimizer": installed("pytorch_optimizer")}
    budget = Budget.parse(options.budget)
    contest = Contest(
        kept(options), budget, options.seeds, options.clock,
        points=options.points, machine=machine, report=say,
    )  # fmt: skip
    optimisers = named(options.optimisers or list(OPTIMISERS))
    runs: list[Run] = []
    tables = ""
    for problem in chosen:
        say(f"{problem.name}: {problem.about}")
        runs += contest.hold(problem.task(options.samples), optimisers)
        tables = write_report(options.output, f"Convergence within {budget}", runs, machine)
    print("\n" + tables)


def align(chosen: Sequence[Problem], options: argparse.Namespace) -> None:
    """Measure and write the alignment; what was measured is there after every problem."""
    found: list[alignment.Alignment] = []
    for problem in chosen:
        task = problem.task(options.samples)
        found += alignment.measure(task, batch_size=options.batch, seed=options.seeds[0])
        say(f"{problem.name}: measured; {alignment.write(found, options.output)}")
    print("\n" + alignment.text(found))


def vary(chosen: Sequence[Problem], options: argparse.Namespace) -> None:
    """Train with one option changed at a time; what was measured is written after every problem."""
    method = sensitivity.varied(options.optimisers or ["kfra"])
    contest = Contest(
        kept(options), Budget.parse(options.budget), options.seeds, options.clock,
        points=sensitivity.POINTS, machine=environment(), report=say,
    )  # fmt: skip
    found: list[sensitivity.Effect] = []
    for problem in chosen:
        task = problem.task(options.samples)
        found += sensitivity.measure(task, contest, method, options.options)
        say(f"{problem.name}: measured; {sensitivity.write(found, options.output)}")
    print("\n" + sensitivity.text(found))


def rearrange(chosen: Sequence[Problem], options: argparse.Namespace) -> None:
    """Train on the same batches in several orders; what was measured is written after every problem."""
    method = sensitivity.varied(options.optimisers or ["kfra"])
    budget = Budget.parse(options.budget)
    contest = Contest(
        kept(options), budget, options.seeds, options.clock,
        points=orders.POINTS, machine=environment(), report=say,
    )  # fmt: skip
    found: list[orders.Losses] = []
    for problem in chosen:
        found += orders.measure(problem.task(options.samples), contest, method)
        say(f"{problem.name}: measured; {orders.write(found, options.output, str(budget))}")
    print("\n" + orders.text(found))


def kept(options: argparse.Namespace) -> Path:
    """The folder of finished runs: one for each action and number of samples, which no run's name has."""
    folder: Path = options.runs
    return folder / f"{options.action}-{options.samples or 'all'}"


def problems(names: Sequence[str]) -> list[Problem]:
    """Problems by name, all without one; an unknown one raises with the nearest known."""
    for name in names:
        require_known("problem", name, PROBLEMS, "some")
    return [PROBLEMS[name] for name in names or PROBLEMS]


def say(text: str) -> None:
    """A line of progress, at once."""
    print(text, flush=True)


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convergence", description=__doc__)
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="run")
    parser.add_argument("--problems", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--optimisers", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--options", nargs="+", default=[], metavar="NAME", help="of sensitivity")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--budget", default="60s", help="60s, 2m, or 100u for updates")
    parser.add_argument("--samples", type=int, help="only so many of each problem's data")
    parser.add_argument("--batch", type=int, default=500, help="batch of the alignment")
    parser.add_argument("--points", type=int, default=POINTS, help="evaluations in a run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--output", type=Path, default=Path("runs/convergence"))
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/kept"), help="where finished runs are kept"
    )
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
