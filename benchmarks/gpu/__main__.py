"""The command; ``python -m benchmarks.gpu --help``. Needs nothing beyond gncompile's own imports."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..compare import Check
from ..machine import environment, installed
from ..problems import WIDTHS, Problem
from . import kernels, layers, places, rates, tuning
from .checks import checks, kernel_checks, odd_batch
from .clock import Clock
from .network import BASELINES, Network
from .ours import STEADY, Engine
from .rows import Entry, Row, free, measured, table

STAGES = ("gradients", "curvature", "steps", "layers", "kernels", "tuning", "places")
DRY_WIDTHS = (20, 16, 5, 16, 20)
DRY_PLACES = 4
"""Samples of the networks with weights at places."""
CUDA_RATES, DRY_RATES = (8192, 1 << 28), (64, 1 << 12)
"""Size of the matrices, and numbers copied: past every cache."""


@dataclass
class Run:
    """One run of the benchmark and its results so far."""

    options: argparse.Namespace
    clock: Clock
    engine: Engine
    started: float = field(default_factory=time.perf_counter)
    checks: list[Check] = field(default_factory=list)
    stages: dict[str, list[Row]] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        """What did not hold or could not be timed."""
        wrong = [check.name for check in self.checks if not check.holds]
        return wrong + [r.name for rows in self.stages.values() for r in rows if r.error]

    def say(self, text: str) -> None:
        """Progress, with the seconds since the start."""
        print(f"[{time.perf_counter() - self.started:6.1f} s] {text}", flush=True)

    def check(self, found: Iterator[Check]) -> None:
        """Print and keep checks as they come; one that raises is one that does not hold."""
        try:
            for each in found:
                self.say(str(each))
                self.checks.append(each)
        except Exception as error:  # whatever a kernel, a compiler or a library may raise
            traceback.print_exc()
            name = f"the check after {self.checks[-1].name}" if self.checks else "the first check"
            self.checks.append(Check(f"{name}: {type(error).__name__}: {error}", float("nan"), 0.0))

    def stage(self, name: str, entries: Iterator[Entry], **baselines: str) -> list[Row]:
        """Time a stage, print its table, and write everything so far."""
        self.stages[name] = rows = measured(entries, self.clock, self.say)
        self.show(name, rows, **baselines)
        self.write()
        free(self.clock.device)
        return rows

    def show(self, title: str, rows: list[Row], **baselines: str) -> None:
        """Print a table."""
        print("\n" + table(title, rows, self.rates, baselines) + "\n", flush=True)

    def write(self) -> None:
        """The record so far, so that a run that is stopped leaves what it had."""
        if self.options.output is None:
            return
        record = {
            "environment": device_environment(self.clock.device, self.options.commit),
            "options": {
                k: str(v) if isinstance(v, Path) else v for k, v in vars(self.options).items()
            },
            "precision": self.engine.precision,
            "backend": self.engine.backend,
            "checks": {c.name: {"error": c.error, "allowed": c.allowed} for c in self.checks},
            "rates": self.rates,
            "stages": {name: [row.record() for row in rows] for name, rows in self.stages.items()},
        }
        self.options.output.write_text(json.dumps(record, indent=1) + "\n")


def device_environment(device: torch.device, commit: str | None) -> dict[str, str]:
    """What the times depend on besides the code."""
    found = {**environment(), "triton": installed("triton"), "cuda": str(torch.version.cuda)}
    if commit:
        found["commit"] = commit
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["multiprocessors"] = str(properties.multi_processor_count)
        found["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
        found["driver"] = driver()
    return found


def driver() -> str:
    """The driver's version, as nvidia-smi tells it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def arguments(given: list[str] | None) -> argparse.Namespace:
    """The options, with those that ``--quick`` and ``--dry-run`` imply filled in."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--model", choices=sorted(WIDTHS), default="mnist")
    add(
        "--batch",
        type=int,
        nargs="+",
        help="default 1000 128 8192, with --quick 1000; checked at the first",
    )
    add("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    add("--precision", choices=("highest", "high", "medium"), default="high",
        help="of our float32 products; torch's rows may use TF32")  # fmt: skip
    add("--quick", action="store_true", help="one batch, few rounds, no torch.compile")
    add(
        "--no-compile",
        action="store_true",
        help="leave torch.compile out, whose tuning takes minutes",
    )
    add("--rounds", type=int, help="measurements of each row")
    add("--networks", nargs="+", choices=sorted(places.EVERY), default=list(places.EVERY),
        help="those with weights at places, on their own batches")  # fmt: skip
    add("--layer", type=int, nargs="+", help="widths of the square layers, default 4096")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add(
        "--dry-run",
        action="store_true",
        help="on a CPU at tiny sizes, with torch, or Triton's interpreter where that is set",
    )
    add("--output", type=Path, help="a JSON file, written after every stage")
    add("--commit", help="what the record says, where the copy has no .git")
    options = parser.parse_args(given)
    options.dry_run = options.dry_run or options.device == "cpu"
    options.batch = options.batch or (
        [12] if options.dry_run else [1000] if options.quick else [1000, 128, 8192]
    )
    options.rounds = options.rounds or (2 if options.dry_run else 5 if options.quick else 11)
    options.layer = options.layer or (
        [32] if options.dry_run else [2048] if options.quick else [4096]
    )
    return options


def main(given: list[str] | None = None) -> int:
    """Check, then time; 0 if everything worked, 1 if a row failed, 2 if a check did."""
    options = arguments(given)
    if not options.dry_run and not torch.cuda.is_available():
        print(
            "no CUDA device; --dry-run runs the same code on the CPU at tiny sizes", file=sys.stderr
        )
        return 2
    device = torch.device("cpu" if options.dry_run else f"cuda:{torch.cuda.current_device()}")
    clock = Clock(device, options.rounds, 0.0 if options.dry_run else 0.02)
    interpreted = bool(os.environ.get("TRITON_INTERPRET"))
    engine = Engine("triton" if not options.dry_run or interpreted else "torch", options.precision)
    run = Run(options, clock, engine)
    with temporary_cache():
        return benchmark(run)


def benchmark(run: Run) -> int:
    """All that was asked for."""
    options, clock = run.options, run.clock
    widths = DRY_WIDTHS if options.dry_run else WIDTHS[options.model]
    problems = {
        batch: Problem.make(options.model, widths, batch, "mse").on(clock.device)
        for batch in options.batch
    }
    networks = set(options.stages) - {"layers", "tuning", "places"}  # which check what they time
    if networks:
        first = problems[options.batch[0]]
        for problem in (first, *([] if options.dry_run else [odd_batch(first)])):
            run.say(f"checking at batch {problem.batch}")
            run.check(checks(problem, run.engine))
    if "layers" in options.stages and not options.dry_run:
        run.check(kernel_checks(clock.device, layers.PRECISIONS))
    at_places = [
        places.Places.make(name, run.engine, clock, DRY_PLACES if options.dry_run else None)
        for name in (options.networks if "places" in options.stages else ())
    ]
    for each in at_places:
        run.say(f"checking {each.name} at batch {len(each.x)}")
        run.check(each.checks())
    if run.failed:
        print("\nno times: what is fast but wrong is not worth timing")
        run.write()
        return 2
    measure_rates(run)
    with rates.tf32(True):
        for batch, problem in problems.items():
            time_network(run, batch, problem)
        for each in at_places:
            name = f"{each.name}, batch {len(each.x)}"
            run.stage(name, each.entries(), **places.BASELINES)
        if "layers" in options.stages and not options.dry_run:
            for size in options.layer:
                run.stage(f"layers, d = {size}", layers.entries(clock, size, 2 * size))
    run.say(f"done; {len(run.failed)} rows failed")
    return 1 if run.failed else 0


def measure_rates(run: Run) -> None:
    """The roof: products in TF32, and a copy."""
    size, copied = DRY_RATES if run.options.dry_run else CUDA_RATES
    rows = run.stage("rates", rates.entries(run.clock, size, copied))
    by_name = {row.name: row for row in rows}
    roof = by_name[rates.TF32].rate(by_name[rates.TF32].flops)
    moved = by_name[rates.COPY].rate(by_name[rates.COPY].bytes)
    run.rates = {name: rate for name, rate in (("matrix", roof), ("copy", moved)) if rate}


def time_network(run: Run, batch: int, problem: Problem) -> None:
    """The stages of one batch size; one table, so that ratios go across stages."""
    options = run.options
    network = Network(problem, run.clock, run.engine, not (options.quick or options.no_compile))
    by_stage: dict[str, Callable[[], Iterator[Entry]]] = {
        "gradients": network.gradients,
        "curvature": network.curvature,
        "steps": network.steps,
    }
    chosen = [stage for stage in by_stage if stage in options.stages]
    if chosen:
        entries = (entry for stage in chosen for entry in by_stage[stage]())
        run.stage(f"{problem.name}, batch {batch}", entries, **BASELINES)
    if "kernels" in options.stages:
        kernel_table(run, batch, problem)
    if "tuning" in options.stages:
        name = f"tuning, batch {batch}"
        rows = run.stage(name, tuning.entries(run.engine, problem, run.clock))
        run.show(f"means, {name}", tuning.means(rows), **{"/default": tuning.mean_name("default")})


def kernel_table(run: Run, batch: int, problem: Problem) -> None:
    """Every launch of a KFRA step with default settings."""
    run.say("preparing the launches of one step")
    trainer = run.engine.trainer(problem, **STEADY)
    for _ in range(2):
        trainer.step(problem.x, problem.x)
    executable = trainer._executable
    dims = {"N": batch, **trainer.settings.rows(batch)}
    clock = Clock(run.clock.device, 3, 0.1 * run.clock.least)
    name = f"launches, batch {batch}"
    rows = measured(kernels.entries(executable, clock, dims), clock, lambda text: None)
    run.stages[name] = rows
    run.write()
    run.show(f"phases, the sum of their {name}", kernels.by_phase(rows))
    run.show(f"slowest {name}", sorted(rows, key=lambda row: -(row.median or 0.0))[:25])


class temporary_cache:
    """Emitted sources go to a folder of this run where no other is known: platformdirs may be missing."""

    def __enter__(self) -> None:
        self.folder: tempfile.TemporaryDirectory[str] | None = None
        if "GNCOMPILE_CACHE" not in os.environ and find_spec("platformdirs") is None:
            self.folder = tempfile.TemporaryDirectory()
            os.environ["GNCOMPILE_CACHE"] = self.folder.name

    def __exit__(self, *_: Any) -> None:
        if self.folder:
            del os.environ["GNCOMPILE_CACHE"]
            self.folder.cleanup()


if __name__ == "__main__":
    sys.exit(main())
