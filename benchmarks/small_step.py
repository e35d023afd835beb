"""Two small networks' steps beside a fused Adam step: ``python -m benchmarks.small_step``; see README.md.

Here the work of a step is next to nothing, and what is timed is what it costs to ask for it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import gncompile
from gncompile.program.timetable import cycle, settled

from .machine import environment
from .timing import Contestant, JsonOption, measure

AIM = 2.5
"""The largest ratio wanted."""
CHECKED, AGREEMENT = 5, 1e-3
"""Steps compared with the reference backend, and how far their losses may be apart, relatively."""

Network = tuple[nn.Sequential, Tensor, Tensor]


def narrow() -> Network:
    """1-30-30-1, a sine of rising frequency at 200 points, float64."""
    x = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    return mlp(1, 30, 30, 1).double(), x, torch.sin(6 * x**2)


def wide() -> Network:
    """20-64-64-2, a fixed random network's outputs on 256 samples, float32."""
    x = torch.randn(256, 20)
    return mlp(20, 64, 64, 2), x, mlp(20, 64, 64, 2)(x).detach()


NETWORKS: dict[str, Callable[[], Network]] = {"1-30-30-1": narrow, "20-64-64-2": wide}


def mlp(*widths: int) -> nn.Sequential:
    """Affine layers with tanh between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def losses(network: Network, backend: str) -> list[float]:
    """The losses of the first steps."""
    model, x, y = copy.deepcopy(network)
    trainer = gncompile.compile(model, "mse", x, backend=backend)
    return [float(trainer.step(x, y).loss) for _ in range(CHECKED)]


def adam(network: Network) -> Callable[[], None]:
    """Forward, backward and the fused update of ``torch.optim.Adam``."""
    model, x, y = copy.deepcopy(network)
    optimiser = torch.optim.Adam(model.parameters(), fused=True)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        (0.5 * (model(x) - y) ** 2).sum(dim=1).mean().backward()
        optimiser.step()

    return step


def timed(network: Network, rounds: int) -> dict[str, float]:
    """Median CPU seconds of a step of ours, over a whole cycle of refreshes, and of Adam."""
    model, x, y = copy.deepcopy(network)
    trainer = gncompile.compile(model, "mse", x)
    count = cycle(trainer.settings)
    contestants = [
        Contestant("ours", lambda: trainer.step(x, y), 0.0, count, settled(trainer.settings)),
        Contestant("adam", adam(network), 0.0, 5 * count, count),
    ]
    timings = measure(contestants, rounds, clock="cpu")
    return {name: timing.median for name, timing in timings.items()}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each step.")] = 25,
    json_file: JsonOption = None,
) -> None:
    """Compare our steps with the reference backend, then time them against Adam's on one thread."""
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        network = make()
        ours, reference = losses(network, "torch"), losses(network, "reference")
        apart = max(abs(a - b) / b for a, b in zip(ours, reference, strict=True))
        if not (apart < AGREEMENT and ours[-1] < ours[0]):
            typer.echo(f"{name}: losses {ours} of our steps, {reference} of the reference's")
            raise typer.Exit(1)
        times = timed(network, rounds)
        ratio = times["ours"] / times["adam"]
        rows[name] = {"seconds": times, "over_adam": ratio, "apart": apart}
        verdict = "met" if ratio <= AIM else "MISSED"
        microseconds = ", ".join(f"{who} {1e6 * time:.0f} µs" for who, time in times.items())
        typer.echo(f"{verdict:<7}{name}: {microseconds}, {ratio:.2f} × Adam, aim ≤ {AIM}")
    if json_file:
        record = {"environment": environment(), "clock": "cpu", "rows": rows}
        json_file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
