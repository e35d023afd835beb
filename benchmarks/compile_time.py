"""Compiling, and a short training from a file, timed: ``python -m benchmarks.compile_time``; see README.md.

CPU seconds of this process, and of the command's: what others do on the machine does not count.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import nn

import gncompile
from gncompile.training.trainer import Trainer

from .machine import environment
from .timing import JsonOption

AIMS = {"40 layers": 1.5, "100 layers": 4.0, "gncompile train": 4.0}
"""CPU seconds."""
LAYERS = (10, 20, 40, 100)
WIDTH = 32
AGREEMENT = 1e-5
"""How far the first losses may be from torch's, relatively, in float32."""

MODEL_FILE = """
[model]
name = "small"
[data]
name = "small.npz"
[network]
layers = [4, 16, 1]
[loss]
name = "mse"
[training]
updates = 20
batch_size = 100
"""


def network(layers: int, width: int = WIDTH) -> nn.Sequential:
    """So many affine layers of a width, with tanh between them."""
    torch.manual_seed(layers)
    parts: list[nn.Module] = []
    for _ in range(layers):
        parts += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*parts[:-1])


def compiled(model: nn.Sequential) -> tuple[float, Trainer]:
    """CPU seconds of compiling, and the trainer."""
    x = torch.zeros(4, next(model.parameters()).shape[1])
    start = time.process_time()
    trainer = gncompile.compile(model, "mse", x, tune="off")
    return time.process_time() - start, trainer


def apart(model: nn.Module, trainer: Trainer) -> float:
    """How far the losses of the first two steps are from torch's, at the parameters before each."""
    x, y = torch.randn(2, 64, WIDTH)
    worst = 0.0
    for _ in range(2):
        wanted = float((model(x).detach() - y).square().sum(1).mean() / 2)
        worst = max(worst, abs(float(trainer.step(x, y).loss) - wanted) / wanted)
    return worst


def command() -> float:
    """CPU seconds of ``gncompile train`` of a small file, the start of Python and the report included."""
    with tempfile.TemporaryDirectory() as folder:
        x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
        np.savez(Path(folder, "small.npz"), x=x, y=x[:, :1] ** 2)
        Path(folder, "small.toml").write_text(MODEL_FILE)
        start = _children()
        asked = [sys.executable, "-m", "gncompile", "train", "small.toml", "--quiet"]
        subprocess.run(asked, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        spent = _children() - start
        assert Path(folder, "runs/small/report.md").is_file()
    return spent


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(
    rounds: Annotated[
        int, typer.Option(min=1, help="Compilations of each; the fastest counts.")
    ] = 3,
    json_file: JsonOption = None,
) -> None:
    """Check the first losses of every compiled network, then print what compiling it takes on one thread."""
    torch.set_num_threads(1)
    times = {"first compile in a process, 2 layers": compiled(network(2))[0]}
    times["2 layers"] = _fastest(2, rounds)
    checked: dict[str, float] = {}
    for layers in LAYERS:
        model = network(layers)
        _, trainer = compiled(model)
        checked[f"{layers} layers"] = found = apart(model, trainer)
        if not found < AGREEMENT:
            typer.echo(f"{layers} layers: a first loss is {found:.2g} from torch's, relatively")
            raise typer.Exit(1)
        times[f"{layers} layers"] = _fastest(layers, rounds)
        times[f"{layers} layers again"] = compiled(network(layers))[0]
    times["gncompile train"] = min(command() for _ in range(rounds))
    for name, seconds in times.items():
        aim = AIMS.get(name)
        verdict = "" if aim is None else "met" if seconds <= aim else "MISSED"
        typer.echo(f"{verdict:<7}{name:<38}{seconds:6.2f} s" + (f", aim ≤ {aim}" if aim else ""))
    if json_file:
        record: dict[str, Any] = {"environment": environment(), "clock": "cpu"}
        record |= {"seconds": times, "first_losses_apart": checked}
        json_file.write_text(json.dumps(record, indent=2) + "\n")


def _fastest(layers: int, rounds: int) -> float:
    """Of compilations that no cache knows, for each is of another width."""
    return min(compiled(network(layers, WIDTH + 1 + number))[0] for number in range(rounds))


if __name__ == "__main__":
    typer.run(main)
