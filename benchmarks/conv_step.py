"""Two convolutional networks' steps beside torch's: ``python -m benchmarks.conv_step``; see README.md.

Convolutions are torch's own kernels on both sides; what differs is everything between them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

import gncompile
from gncompile.program.timetable import cycle, settled

from .compiled import Compiled
from .machine import environment
from .timing import Clock, Contestant, JsonOption, measure

AIMS = {"gradient / autograd": 1.15, "gradient and factors / BackPACK": 0.8, "step / adam": 2.5}
"""The largest ratios wanted."""
AGREEMENT = 1e-3
"""How far a layer's gradient may be from autograd's, relatively, in float32."""
CLASSES = 10
FACTORS = ("gradient", "share_inputs", "curvature", "columns_begin", "columns")
"""The phases up to a layer's factors, of which a program has some."""

Network = tuple[nn.Module, Tensor, Tensor]


class Residual(nn.Module):
    """``relu(s(x) + c₂(relu(c₁(x))))``, 3×3; s is the identity, or 1×1 where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        changed = inputs != outputs or stride > 1
        self.around = nn.Conv2d(inputs, outputs, 1, stride) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.around(x) + self.second(torch.relu(self.first(x))))


def lenet() -> Network:
    """LeNet-5 with maxima and rectifiers on 256 images like MNIST's."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES),
    )  # fmt: skip
    return model, torch.rand(256, 1, 28, 28), torch.randint(CLASSES, (256,))


def residual() -> Network:
    """Three residual blocks of 16, 32 and 64 channels on 128 images of 32×32 in colour."""
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
        Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES),
    )  # fmt: skip
    return model, torch.rand(128, 3, 32, 32), torch.randint(CLASSES, (128,))


NETWORKS: dict[str, Callable[[], Network]] = {"lenet": lenet, "residual": residual}


def apart(network: Network, ours: Compiled) -> float:
    """The largest relative distance of a layer's gradient from autograd's."""
    model, x, y = copy.deepcopy(network)
    nn.functional.cross_entropy(model(x), y).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    ours.run("gradient")
    found = []
    for layer, gradient in ours.gradients().items():
        exact = ours.traced.graph.layers[layer].joined(gradients)
        found.append(float((gradient - exact).norm() / exact.norm()))
    return max(found)


def autograd(network: Network) -> Callable[[], None]:
    """Forward and backward."""
    model, x, y = copy.deepcopy(network)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()

    return run


def adam(network: Network, capturable: bool = False) -> Callable[[], None]:
    """Forward, backward and the fused update of ``torch.optim.Adam``."""
    model, x, y = copy.deepcopy(network)
    optimiser = torch.optim.Adam(model.parameters(), fused=True, capturable=capturable)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()

    return step


def backpack_kfac(network: Network) -> Callable[[], None] | None:
    """BackPACK's gradient and KFAC of one sampled target, where it is installed and knows the modules."""
    if find_spec("backpack") is None or any(isinstance(m, Residual) for m in network[0].modules()):
        return None
    import backpack
    from backpack.extensions import KFAC

    model, x, y = copy.deepcopy(network)
    model, loss = backpack.extend(model), backpack.extend(nn.CrossEntropyLoss())

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with backpack.backpack(KFAC(mc_samples=1)):
            loss(model(x), y).backward()

    return run


def timed(network: Network, ours: Compiled, rounds: int, clock: Clock) -> dict[str, float]:
    """Median seconds of each part; a step's is the mean of a whole cycle of refreshes."""
    model, x, y = copy.deepcopy(network)
    trainer = gncompile.compile(model, "cross_entropy", x)
    count, warm = cycle(trainer.settings), settled(trainer.settings)
    present = [phase for phase in FACTORS if phase in ours.program.phases]
    contestants = [
        Contestant("gradient", lambda: ours.run("gradient"), 0.0, 3),
        Contestant("autograd", autograd(network), 0.0, 3),
        Contestant("gradient and factors", lambda: ours.run(*present), 0.0),
        Contestant("step", lambda: trainer.step(x, y), 0.0, count, warm),
        Contestant("adam", adam(network), 0.0, count),
    ]
    if (peer := backpack_kfac(network)) is not None:
        contestants.append(Contestant("BackPACK", peer, 0.0))
    timings = measure(contestants, rounds, clock=clock)
    return {name: timing.median for name, timing in timings.items()}


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each part.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Of one thread the CPU's time counts.")] = 1,
    json_file: JsonOption = None,
) -> None:
    """Compare our gradients with autograd's, then time them, and default steps with Adam's, in turn."""
    torch.set_num_threads(threads)
    clock: Clock = "cpu" if threads == 1 else "wall"
    rows: dict[str, Any] = {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        network = make()
        ours = Compiled(copy.deepcopy(network[0]), "cross_entropy", *network[1:], method="kfac")
        distance = apart(network, ours)
        if not distance < AGREEMENT:
            typer.echo(f"{name}: a layer's gradient is {distance:.1e} from autograd's")
            raise typer.Exit(1)
        times = timed(network, ours, rounds, clock)
        ratios = {
            f"{a} / {b}": times[a] / times[b]
            for a, b in (
                ("gradient", "autograd"),
                ("gradient and factors", "autograd"),
                ("gradient and factors", "BackPACK"),
                ("step", "adam"),
            )
            if b in times
        }
        rows[name] = {"seconds": times, "ratios": ratios, "apart": distance}
        typer.echo(f"{name}: " + ", ".join(f"{p} {1e3 * t:.1f} ms" for p, t in times.items()))
        for what, ratio in ratios.items():
            aim = AIMS.get(what)
            verdict = "" if aim is None else "met" if ratio <= aim else "MISSED"
            wanted = "" if aim is None else f", aim ≤ {aim}"
            typer.echo(f"{verdict:<7}{what}: {ratio:.2f}{wanted}")
    if json_file:
        record = {"environment": environment(), "clock": clock, "rows": rows}
        json_file.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
