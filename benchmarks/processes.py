"""What a step costs each of several processes: ``python -m benchmarks.processes``; see README.md.

One thread each, on the MNIST autoencoder of Hinton and Salakhutdinov. A phase's CPU seconds are those of the
process, waiting excluded, so that they tell the work even on a busy machine.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer

import gncompile
from gncompile.program.costs import CostModel
from gncompile.program.phases import Stage
from gncompile.training.trainer import Trainer

from .group import on
from .machine import environment
from .problems import WIDTHS, Problem
from .timing import JsonOption

CHECKED, AGREEMENT = 3, 1e-9
"""Steps in float64 whose losses are compared before anything is timed, and how far they may be apart."""
FALL, STEP = 0.15, 0.6
"""The aims: CPU seconds fall as 1/R up to so much, and a step of two takes at most so much of one's."""


@dataclass(frozen=True)
class Measured:
    """What one process has found: CPU seconds a step by part, seconds of the clock, and what it has sent."""

    checked: list[float]
    cpu: dict[str, float]
    cpu_step: float
    wall_step: float
    sent: tuple[int, int]
    stated: tuple[int, int]


def measured(size: int, batch: int, steps: int, method: str) -> Measured:
    """The checked steps, and then the timed ones."""
    checked = [float(s) for s in _losses(_trainer(size, 200, method, torch.float64), CHECKED)]
    trainer, x = _trainer(size, batch, method, torch.float32)
    for _ in range(2):
        trainer.step(x, x)
    executable, program = trainer.compiled.executable, trainer.compiled.program
    costs = CostModel(program, batch)
    run, cpu, stated = executable.run, defaultdict[str, float](float), [0, 0]

    def timed(*phases: str) -> None:
        for phase in phases:
            started = time.process_time()
            run(phase)
            measuring = program.record(phase).stage in (Stage.GRADIENT, Stage.MEASUREMENT)
            part = "gradient and factors" if measuring else phase if phase == "invert" else "rest"
            cpu[part] += time.process_time() - started
            for k, number in enumerate(costs.sent(phase)):
                stated[k] += number

    executable.run = timed  # type: ignore[method-assign]
    processes = executable.processes
    before = (processes.sent_bytes, processes.messages) if processes else (0, 0)
    started, clock = time.process_time(), time.perf_counter()
    for _ in range(steps):
        trainer.step(x, x)
    cpu_step, wall = time.process_time() - started, time.perf_counter() - clock
    after = (processes.sent_bytes, processes.messages) if processes else (0, 0)
    return Measured(
        checked,
        {part: seconds / steps for part, seconds in cpu.items()},
        cpu_step / steps,
        wall / steps,
        (after[0] - before[0], after[1] - before[1]),
        (stated[0], stated[1]),
    )


def _trainer(
    size: int, batch: int, method: str, dtype: torch.dtype
) -> tuple[Trainer, torch.Tensor]:
    problem = Problem.make("mnist", WIDTHS["mnist"], batch, "bce")
    model, x = problem.fresh(dtype), problem.x.to(dtype)
    trainer = gncompile.compile(
        model, "bce_with_logits", x, method=method, tune="off", gather_noise=None
    )
    trainer.joining.deals = size > 1
    return trainer, x


def _losses(made: tuple[Trainer, torch.Tensor], steps: int) -> list[Any]:
    trainer, x = made
    return [trainer.step(x, x).loss for _ in range(steps)]


def main(
    processes: Annotated[int, typer.Option(help="how many, against one")] = 2,
    batch: Annotated[int, typer.Option(help="samples a step, of all together")] = 2000,
    steps: Annotated[int, typer.Option(help="steps that are timed, after two")] = 20,
    method: Annotated[str, typer.Option(help="the curvature method")] = "kfra",
    json_file: JsonOption = None,
) -> None:
    """Compare the work of each process with that of one alone."""
    (alone,) = on(1, measured, batch, steps, method)
    several = on(processes, measured, batch, steps, method)
    for rank, each in enumerate(several):
        apart = max(abs(a / b - 1) for a, b in zip(each.checked, alone.checked, strict=True))
        if apart > AGREEMENT or each.sent != each.stated:
            raise SystemExit(
                f"process {rank}: losses are {apart:.2g} apart; sent {each.sent}, stated {each.stated}: "
                "nothing is reported"
            )
    print(f"losses of {CHECKED} steps agree with one process's; sent is what is stated")
    size, many = (number / steps for number in several[0].sent)
    print(f"each sends {size:,.0f} bytes in {many:.3g} messages a step")
    parts = {**alone.cpu, "step, CPU": alone.cpu_step, "step, clock": alone.wall_step}
    for part, one in parts.items():
        every = [_seconds(each, part) for each in several]
        ratios = ", ".join(f"{1e3 * s:.1f} ms ({s / one:.2f})" for s in every)
        print(f"{part:22} one: {1e3 * one:7.1f} ms   each of {processes}: {ratios}")
    print(f"aims: at most {(1 + FALL) / processes:.3f} of one's invert, and gradient and factors")
    print(f"      and, of two processes, {STEP} of its step")
    if json_file:
        found = {
            "environment": environment(),
            "one": asdict(alone),
            "each": [asdict(e) for e in several],
        }
        json_file.write_text(json.dumps(found, indent=1))


def _seconds(each: Measured, part: str) -> float:
    return {**each.cpu, "step, CPU": each.cpu_step, "step, clock": each.wall_step}[part]


if __name__ == "__main__":
    typer.run(main)
