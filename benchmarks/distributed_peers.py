"""What a step on several processes sends and takes, beside peers: ``python -m benchmarks.distributed_peers``.

See README.md. First everybody's updates are compared with those of one process on the joined batch.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn

from gncompile.base.tables import table

from .distributed_contestants import ADAM, FACTORS, INVERSES, PLAIN, SELDOM, contestants
from .group import on
from .machine import environment, installed
from .problems import WIDTHS, ModelName, Problem
from .timing import JsonOption

CHECKED, SAMPLES = 3, 200
"""Updates in float64 that are compared before anything is timed, and their samples."""
AGREEMENT = 1e-8
"""How far updates may be from those of one process, relative to these: rounding (1e-16) through inverses of
matrices whose eigenvalues lie some six powers of ten apart."""
KINDS = (PLAIN, FACTORS, INVERSES)


@dataclass(frozen=True)
class Check:
    """Relative distances of the first and of all checked updates from one process's, and between ranks."""

    first: float
    last: float
    ranks: float

    @property
    def holds(self) -> bool:
        """Whether these processes do what one does."""
        return max(self.first, self.last) <= AGREEMENT and self.ranks == 0


@dataclass(frozen=True)
class Measured:
    """A contestant's cycle of steps on one process: seconds of each by kind, and what was handed over."""

    cpu: dict[str, list[float]]
    wall: dict[str, list[float]]
    sent: dict[str, list[int]]
    """Messages and bytes, by collective."""

    @property
    def steps(self) -> int:
        """How many there were."""
        return sum(map(len, self.cpu.values()))

    def step(self, clock: str) -> float:
        """Seconds of a mean step."""
        return sum(map(sum, getattr(self, clock).values())) / self.steps

    def messages(self) -> float:
        """Messages of a mean step."""
        return sum(messages for messages, _ in self.sent.values()) / self.steps

    def handed(self) -> float:
        """Bytes of a mean step that were handed over to collectives."""
        return sum(size for _, size in self.sent.values()) / self.steps

    def crossed(self, processes: int) -> float:
        """Bytes that have to leave a process in a mean step, at least, and on average over the processes."""
        return (
            sum(LEAST[name](processes) * size for name, (_, size) in self.sent.items()) / self.steps
        )


LEAST: Mapping[str, Callable[[int], float]] = {
    "all_reduce": lambda r: 2 * (r - 1) / r,
    "all_gather": lambda r: r - 1,
    "reduce": lambda r: (r - 1) / r,
    "broadcast": lambda r: (r - 1) / r,
}
"""What leaves each of r processes, as a multiple of what is handed over, in a ring or from one to all."""


# --- On each process ------------------------------------------------------------------------------------


def checked(size: int, widths: tuple[int, ...], kept: Path) -> dict[str, Check]:
    """One process keeps its updates in a folder; several compare theirs with them."""
    found = {}
    for number, name in enumerate(contestants()):
        path = kept / str(number)
        if size == 1:
            torch.save(updates_of(widths, name), path)
        else:
            found[name] = compared(widths, torch.load(path), name)
    return found


def compared(widths: tuple[int, ...], alone: Sequence[Tensor], name: str) -> Check:
    """A contestant's updates on a process of several with those of one."""
    updates = updates_of(widths, name)
    first = updates[-1].clone()
    dist.broadcast(first, 0)
    pairs = (updates[0], alone[0]), (updates[-1], alone[-1]), (updates[-1], first)
    return Check(*(float((a - b).norm() / b.norm()) for a, b in pairs))


def measured(size: int, widths: tuple[int, ...], batch: int) -> dict[str, Measured]:
    """Everybody's steps, one contestant after the other."""
    found = {}
    for name in contestants():
        if dist.get_rank() == 0:
            print(f"timed now: {name}", file=sys.stderr, flush=True)
        found[name] = steps_of(widths, batch, name)
    return found


def updates_of(widths: tuple[int, ...], name: str) -> list[Tensor]:
    """How far a contestant has come after each of its first steps, in float64."""
    torch.set_default_dtype(torch.float64)  # ASDL makes tensors of the default one
    try:
        problem = Problem.make(name, widths, SAMPLES, "bce")
        model = problem.fresh(torch.float64)
        running, start = contestants()[name](model, problem.x), _vector(model)
        updates = []
        for _ in range(CHECKED):
            running.step(problem.x)
            updates.append(_vector(model) - start)
    finally:
        torch.set_default_dtype(torch.float32)
    return updates


def steps_of(widths: tuple[int, ...], batch: int, name: str) -> Measured:
    """A cycle of a contestant's steps in float32, after first steps on few samples."""
    problem = Problem.make(name, widths, batch, "bce")
    running = contestants()[name](problem.fresh(), problem.x)
    for _ in range(running.warm_up):
        running.step(problem.x[:SAMPLES])
    running.step(problem.x)
    cpu, wall = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    with counted() as sent:
        for _ in range(running.cycle):
            begun, clock = time.process_time(), time.perf_counter()
            kind = running.step(problem.x)
            cpu[kind].append(time.process_time() - begun)
            wall[kind].append(time.perf_counter() - clock)
    return Measured(dict(cpu), dict(wall), dict(sent))


@contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """Within this block messages and bytes that this process hands over, by collective of torch."""
    sent, before = defaultdict[str, list[int]](lambda: [0, 0]), {}

    def counting(name: str, collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            own = given[1] if name == "all_gather" else given[0]
            sent[name][0] += 1
            sent[name][1] += own.numel() * own.element_size()
            return collective(*given, **options)

        return call

    for name in LEAST:
        before[name] = getattr(dist, name)
        setattr(dist, name, counting(name, before[name]))
    try:
        yield sent
    finally:
        for name, collective in before.items():
            setattr(dist, name, collective)


def _vector(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# --- On paper -------------------------------------------------------------------------------------------


def on_paper(widths: Sequence[int], processes: int) -> dict[str, tuple[float, float]]:
    """Bytes that leave a process in a step that has nothing new, and in one with new factors and inverses.

    Of peers that are not on PyPI, in float32, by what their authors describe. KAISA (Pauloski et al. 2021,
    arXiv 2107.01739; kfac-pytorch) sums up gradients and whole factors for all; in *COMM-OPT* a layer's owner
    tells all its inverses, in *MEM-OPT* its preconditioned gradient, in every step. Distributed Shampoo (Shi
    et al. 2023, arXiv 2309.06497) sums up gradients and gathers the directions.
    """
    layers = [(inputs + 1, outputs) for inputs, outputs in pairwise(widths)]
    gradients = 4 * sum(a * g for a, g in layers)
    factors = 4 * sum(a * a + g * g for a, g in layers)
    summed, told, gathered = (
        LEAST[name](processes) for name in ("all_reduce", "broadcast", "all_gather")
    )
    only_summed = summed * gradients
    gradients_told = (summed + told) * gradients
    directions = summed * gradients + gathered * gradients / processes
    return {
        "KAISA, COMM-OPT": (only_summed, only_summed + (summed + told) * factors),
        "KAISA, MEM-OPT": (gradients_told, gradients_told + summed * factors),
        "Distributed Shampoo": (directions, directions),
    }


# --- Told -----------------------------------------------------------------------------------------------


def check_table(checks: Mapping[str, Sequence[Check]]) -> str:
    """The furthest rank of each contestant."""
    rows = [["updates of one process?", "first", f"after {CHECKED}", "ranks apart", ""]]
    for name, ranks in checks.items():
        furthest = [max(getattr(c, of) for c in ranks) for of in ("first", "last", "ranks")]
        held = all(check.holds for check in ranks)
        rows.append([name, *(f"{apart:.1g}" for apart in furthest), "yes" if held else "NO"])
    return table(rows, right=range(1, 4))


def refuse(checks: Mapping[str, Sequence[Check]]) -> None:
    """End the program if ours, or torch's, are not what one process does; of other peers the table tells."""
    wrong = [
        name
        for name, ranks in checks.items()
        if not name.startswith("ASDL") and not all(check.holds for check in ranks)
    ]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)}: further than {AGREEMENT:g} apart; nothing is timed")


def step_table(found: Mapping[str, Sequence[Measured]]) -> str:
    """Means over the processes, and seconds as multiples of Adam's too."""
    rows = [["step", "messages", "MB handed over", "MB sent", "CPU ms", "× Adam", "ms", "× Adam"]]
    rows[0] += [f"CPU ms, {kind}" for kind in KINDS]
    floor = {clock: mean(m.step(clock) for m in found[ADAM]) for clock in ("cpu", "wall")}
    for name, ranks in found.items():
        row = [name, f"{ranks[0].messages():.3g}", f"{ranks[0].handed() / 1e6:.1f}"]
        row.append(f"{ranks[0].crossed(len(ranks)) / 1e6:.1f}")
        for clock, one in floor.items():
            seconds = [m.step(clock) for m in ranks]
            row += [" ".join(f"{1e3 * s:.0f}" for s in seconds), f"{mean(seconds) / one:.2f}"]
        for kind in KINDS:
            steps = [m.cpu[kind] for m in ranks if kind in m.cpu]
            row.append(" ".join(f"{1e3 * mean(each):.0f}" for each in steps) or "-")
        rows.append(row)
    return table(rows, right=range(1, len(rows[0])), width=200)


def main(
    model: Annotated[ModelName, typer.Option(help="the autoencoder")] = "mnist",
    batch: Annotated[int, typer.Option(help="samples a step, of all together")] = 2000,
    processes: Annotated[int, typer.Option(help="how many")] = 2,
    json_file: JsonOption = None,
) -> None:
    """Compare with one process, then count and time."""
    widths = WIDTHS[model]
    with tempfile.TemporaryDirectory() as kept:
        on(1, checked, widths, Path(kept))
        checks = _by_name(on(processes, checked, widths, Path(kept)))
    print(check_table(checks), "\n")
    refuse(checks)
    found = _by_name(on(processes, measured, widths, batch))
    print(step_table(found), "\n")
    paper = on_paper(widths, processes)
    for name, (plain, new) in paper.items():
        often = plain + (new - plain) / SELDOM
        print(
            f"{name}, on paper: {plain / 1e6:.1f} MB sent in a plain step, {new / 1e6:.1f} in one with "
            f"all new, {often / 1e6:.1f} in the mean where that is every {SELDOM}th"
        )
    if json_file:
        record = {
            "environment": {**environment(), "asdfghjkl": installed("asdfghjkl")},
            "model": model,
            "batch": batch,
            "checks": {name: [asdict(each) for each in ranks] for name, ranks in checks.items()},
            "steps": {name: [asdict(each) for each in ranks] for name, ranks in found.items()},
            "on paper": paper,
        }
        json_file.write_text(json.dumps(record, indent=1) + "\n")


def _by_name(ranks: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [rank[name] for rank in ranks] for name in ranks[0]}


if __name__ == "__main__":
    typer.run(main)
