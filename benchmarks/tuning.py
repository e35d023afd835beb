"""How good the defaults are where nothing is tuned: ``python -m benchmarks.tuning``; see README.md."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

import gncompile
from gncompile.app.tune_command import seconds
from gncompile.base import config
from gncompile.base.tables import table as aligned
from gncompile.emit.torch_operations import Options
from gncompile.errors import CompileError
from gncompile.tuning.cpu import CpuProblem
from gncompile.tuning.problem import DEFAULT, Bench, Candidate, Key, TuningProblem, shown
from gncompile.tuning.search import Found, search
from gncompile.tuning.store import Store, entry_of
from gncompile.tuning.tuner import bench_of

from .machine import environment
from .problems import WIDTHS, autoencoder
from .timing import CLOCKS, Clock, ClockOption, JsonOption

Widths = tuple[int, ...]


def chain(between: Callable[[], nn.Module]) -> Callable[[Widths], nn.Sequential]:
    """Networks of affine layers with a function between them."""

    def build(widths: Widths) -> nn.Sequential:
        layers = [(nn.Linear(*pair), between()) for pair in pairwise(widths)]
        return nn.Sequential(*[module for layer in layers for module in layer][:-1])

    return build


@dataclass(frozen=True)
class Network:
    """A network of the benchmark set and its loss."""

    widths: Widths
    build: Callable[[Widths], nn.Sequential]
    loss: str

    def benches(self, batches: Iterable[int], scale: float, backend: str) -> list[Bench]:
        """What can be tuned of its step at each batch size, all sizes but 1 times ``scale``."""
        widths = tuple(scaled(width, scale) for width in self.widths)
        device = torch.device(
            "cuda" if torch.cuda.is_available() and backend == "triton" else "cpu"
        )
        trainer = gncompile.compile(
            self.build(widths).to(device), self.loss, torch.zeros(2, widths[0], device=device),
            backend=backend, tune="off",
        )  # fmt: skip
        return [bench_of(trainer, scaled(batch, scale)) for batch in batches]


NETWORKS = {
    "mnist": Network(WIDTHS["mnist"], autoencoder, "bce_with_logits"),
    "curves": Network(WIDTHS["curves"], autoencoder, "bce_with_logits"),
    "classifier": Network((784, 400, 200, 10), chain(nn.ReLU), "cross_entropy"),
    "small": Network((10, 128, 64, 1), chain(nn.Sigmoid), "mse"),
    "wide": Network((64, 1024, 1024, 8), chain(nn.Tanh), "mse"),
}
BATCHES = (128, 1000)
NEIGHBOUR = 1.1
"""How much larger all sizes of the networks are whose settings are borrowed; most stay in their bucket."""
SEARCHED = 0.4
"""Share of the budget for each of the two searches; the rest is for measuring what they found."""
ROUNDS = 11
CONTENDERS = ("default", "tuned", "fallback")


def scaled(size: int, scale: float) -> int:
    """``size`` times ``scale``; one stays one."""
    return size if size == 1 else round(size * scale)


@dataclass
class Row:
    """One problem: what each contender chooses and how long that takes.

    ``fallback`` is what a compilation takes that only knows settings of the neighbouring networks.
    """

    key: Key
    uses: int
    options: dict[str, Options]
    seconds: dict[str, float] = field(default_factory=dict)

    def factor(self, contender: str) -> float:
        """Its time over that of the tuned variant."""
        return self.seconds[contender] / self.seconds["tuned"]


@dataclass
class Report:
    """All rows, and what kept others from being measured."""

    rows: list[Row] = field(default_factory=list)
    unreached: list[Key] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    """Defaults that disagree with their reference; with any there are no times."""
    rejected: list[str] = field(default_factory=list)
    """Other candidates that do, or that the device cannot run."""

    def mean(self, contender: str) -> float:
        """Geometric mean of the factors, every problem counted once."""
        return math.exp(sum(math.log(r.factor(contender)) for r in self.rows) / len(self.rows))

    def worst(self, contender: str) -> Row:
        """The row with the largest factor."""
        return max(self.rows, key=lambda row: row.factor(contender))

    def total(self, contender: str) -> float:
        """Time of all uses over that of the tuned variants."""
        times = {
            name: sum(r.uses * r.seconds[name] for r in self.rows) for name in (contender, "tuned")
        }
        return times[contender] / times["tuned"]

    def table(self) -> str:
        """A line for every problem that has a choice to make, the worst default first."""
        head = ["operation", "shape", "dtype", "tuned", "us", "fallback", "default/tuned"]
        lines = [[*head, "fallback/tuned"]]
        for r in sorted(self.rows, key=lambda row: -row.factor("default")):
            if any(options != r.options["default"] for options in r.options.values()):
                chosen = [shown(r.options[name]) for name in ("tuned", "fallback")]
                lines.append(
                    [
                        *(r.key.kernel, "x".join(map(str, r.key.shape)), r.key.dtype),
                        *(chosen[0], f"{r.seconds['tuned'] * 1e6:.0f}", chosen[1]),
                        *(f"{r.factor(name):.2f}" for name in ("default", "fallback")),
                    ]
                )
        return aligned(lines, right=(4, 6, 7))

    def summary(self) -> str:
        """Geometric means, totals and the worst factors."""
        lines = []
        for name in ("default", "fallback"):
            worst = self.worst(name)
            lines.append(
                f"{name:<9} geometric mean {self.mean(name):.3f}, all uses together "
                f"{self.total(name):.3f}, worst {worst.factor(name):.2f} ({worst.key})"
            )
        chosen = sum(bool(r.options["tuned"]) for r in self.rows)
        lines.append(
            f"{len(self.rows)} problems, {chosen} with another choice than the default; "
            f"{len(self.unreached)} not reached; {len(self.rejected)} candidates rejected"
        )
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """Everything, for a JSON file."""
        return {
            "summary": {
                name: {
                    "mean": self.mean(name),
                    "total": self.total(name),
                    "worst": self.worst(name).factor(name),
                    "worst_problem": str(self.worst(name).key),
                }
                for name in ("default", "fallback")
            },
            "rows": [
                {
                    "kernel": r.key.kernel,
                    "shape": r.key.shape,
                    "dtype": r.key.dtype,
                    "uses": r.uses,
                    "options": {name: dict(options) for name, options in r.options.items()},
                    "seconds": r.seconds,
                }
                for r in self.rows
            ],
            "unreached": [str(key) for key in self.unreached],
            "rejected": self.rejected,
        }


@dataclass
class Problems:
    """The distinct problems of several benches of one device, and how often each is used."""

    bench: Bench
    by_key: dict[Key, TuningProblem] = field(default_factory=dict)
    uses: dict[Key, int] = field(default_factory=dict)

    @classmethod
    def of(cls, benches: Sequence[Bench], clock: Clock) -> Problems:
        found = cls(benches[0])
        for bench in benches:
            for problem in bench.problems(bench.keys):
                if isinstance(problem, CpuProblem):
                    problem.clock = CLOCKS[clock]
                found.by_key.setdefault(problem.key, problem)
                found.uses[problem.key] = found.uses.get(problem.key, 0) + problem.uses
        return found

    def wrong(self) -> list[str]:
        """The problems whose default disagrees with the reference, and by how much."""
        found = []
        for problem in self.by_key.values():
            difference = problem.check(problem.candidates[0])
            problem.release()
            found += [f"{problem.key}: {difference}"] if difference else []
        return found

    def search(self, effort: str, budget: float, folder: Path) -> tuple[Found, Store]:
        """Tune all of them into a store of their own."""
        with config.using(tuning=folder):
            store = Store.of(self.bench.device)
            found = search(list(self.by_key.values()), effort, budget)
            store.add([entry_of(outcome, effort, self.bench.device) for outcome in found.outcomes])
        return found, store


def benchmark(
    networks: Mapping[str, Network],
    batches: Sequence[int],
    budget: float,
    effort: str = "quick",
    clock: Clock = "wall",
    backend: str = "torch",
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Tune the networks and their neighbours, then measure every choice once more, one beside the other."""
    end = time.perf_counter() + budget
    own, neighbours = (
        Problems.of(
            [b for n in networks.values() for b in n.benches(batches, scale, backend) if b.keys],
            clock,
        )
        for scale in (1.0, NEIGHBOUR)
    )
    progress(f"checking {len(own.by_key)} problems")
    report = Report(wrong=own.wrong())
    if report.wrong:
        return report
    with tempfile.TemporaryDirectory() as folder:
        progress("tuning them")
        found, _ = own.search(effort, SEARCHED * budget, Path(folder, "own"))
        progress(f"tuning {len(neighbours.by_key)} neighbouring problems")
        _, borrowed = neighbours.search(effort, SEARCHED * budget, Path(folder, "neighbours"))
        # Some of their shapes are those of the set itself, and would be no fallback.
        borrowed.entries = tuple(e for e in borrowed.entries if e.key not in own.by_key)
    report.unreached, report.rejected = list(found.unreached), rejected(found)
    for outcome in found.outcomes:
        entry = borrowed.look_up(outcome.key, own.bench.allowed)
        options = {
            "default": DEFAULT,
            "tuned": outcome.options,
            "fallback": DEFAULT if entry is None else entry.options,
        }
        report.rows.append(Row(outcome.key, own.uses[outcome.key], options))
    progress("measuring their choices")
    for done, row in enumerate(report.rows):
        left = (end - time.perf_counter()) / (len(report.rows) - done)
        row.seconds = measured(own.by_key[row.key], row.options, left)
    return report


def rejected(found: Found) -> list[str]:
    """The candidates that were not timed, with the reason."""
    return [
        f"{outcome.key}, {shown(trial.options)}: {trial.rejected}"
        for outcome in found.outcomes
        for trial in outcome.trials
        if trial.rejected
    ]


def measured(
    problem: TuningProblem, options: Mapping[str, Options], budget: float
) -> dict[str, float]:
    """The shortest time of each contender; equal options are measured once."""
    distinct = {shown(each): Candidate(each, 0.0) for each in options.values()}
    best = dict.fromkeys(distinct, math.inf)
    end = time.perf_counter() + budget
    for number in range(ROUNDS):
        if number >= 3 and time.perf_counter() >= end:
            break
        # Every other round goes backwards, so that no contender gains from its place.
        for name in list(distinct)[:: 1 if number % 2 == 0 else -1]:
            best[name] = min(best[name], problem.measure(distinct[name]))
        if len(distinct) == 1:
            break  # nothing to compare: the factors are 1
    problem.release()
    return {contender: best[shown(each)] for contender, each in options.items()}


def main(
    networks: Annotated[
        str, typer.Option(help=f"Some of {', '.join(NETWORKS)}, with commas between.")
    ] = ",".join(NETWORKS),
    batches: Annotated[str, typer.Option(help="Samples a step.")] = ",".join(map(str, BATCHES)),
    budget: Annotated[str, typer.Option(help="Time for everything, as 5m.")] = "5m",
    effort: Annotated[str, typer.Option(help="quick or full.")] = "quick",
    threads: Annotated[int, typer.Option(min=1, help="Threads torch may use.")] = 1,
    backend: Annotated[str, typer.Option(help="torch, on a CPU; triton, on a GPU.")] = "torch",
    clock: ClockOption = "wall",
    json_file: JsonOption = None,
) -> None:
    """Compare the default variants, tuned ones, and those borrowed from a neighbouring shape."""
    torch.set_num_threads(threads)
    started = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - started:5.1f} s] {text}", flush=True)

    report = benchmark(
        chosen(networks), [int(size) for size in batches.split(",")], seconds(budget), effort,
        clock, backend, say,
    )  # fmt: skip
    if report.wrong:
        print("\n".join(["WRONG", *report.wrong, "no times: what is fast but wrong is of no use"]))
        raise typer.Exit(1)
    print(f"\n{report.table()}\n\n{report.summary()}")
    print("\n".join(f"{k:<21}{v}" for k, v in environment().items()))
    if json_file:
        about = {"environment": environment(), "clock": clock, "effort": effort, "budget": budget}
        json_file.write_text(json.dumps(about | report.record(), indent=1) + "\n")


def chosen(names: str) -> dict[str, Network]:
    """The networks of these names; ``CompileError`` for an unknown one."""
    unknown = [name for name in names.split(",") if name not in NETWORKS]
    if unknown:
        raise CompileError(
            f"no network {unknown[0]!r}", instead=f"use some of {', '.join(NETWORKS)}"
        )
    return {name: NETWORKS[name] for name in names.split(",")}


if __name__ == "__main__":
    typer.run(main)
