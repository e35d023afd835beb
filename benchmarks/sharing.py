"""How places should share a pair of factors: ``python -m benchmarks.sharing``; see README.md.

For each layer with several places, at the start of a training and in its course: the cosine between the
exact damped update of its block, ``-(G_bb + λI)⁻¹ ∇_b`` with G_bb from Jacobians of ``torch.func``, and the
update by each mode's factors, ``-(Ḡ ⊗ Q + λI)⁻¹ ∇_b``. Beside it the training loss that each mode comes to.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

import gncompile
from gncompile.base.files import atomic_path, atomic_write
from gncompile.base.tables import table

from .machine import ROOT, environment

MODES = ("expand", "reduce", "nearest")
SAMPLES = 128
UPDATES = 40
DAMPINGS = (0.1, 0.001)
SHOWN = 0.001
"""The damping in the picture."""


class Recurrence(nn.Module):
    """``h_t = tanh(A h_{t-1} + B x_t)``, eight steps, and a number read from the last."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.again, self.enter = nn.Linear(width, width), nn.Linear(3, width)
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        entering = self.enter(x)
        h = torch.tanh(entering[:, 0])
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.again(h) + entering[:, t])
        return self.leave(h)


class Tokens(nn.Module):
    """Two layers at every token, neighbours mixed between them; their mean is classified, or each is read."""

    def __init__(self, width: int = 12, pooled: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, width), nn.Linear(width, width)
        self.leave, self.pooled = nn.Linear(width, 4), pooled

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        h = torch.tanh(self.second(h[:, 1:] + h[:, :-1]))
        return self.leave(h.mean(dim=1)) if self.pooled else self.leave(h).flatten(1)


@dataclass(frozen=True)
class Problem:
    """A network, its loss, and the layers to look at; the targets are those of another such network."""

    build: Callable[[], nn.Module]
    loss: str
    layers: tuple[str, ...]
    objective: Callable[[Tensor, Tensor], Tensor]

    def made(self, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
        """Model, inputs that move slowly from place to place, and targets with some noise."""
        torch.manual_seed(seed)
        model, teacher = self.build().double(), self.build().double()
        x = torch.randn(SAMPLES, 8, 3, dtype=torch.float64).cumsum(dim=1) / 2
        z = 3 * teacher(x).detach()
        z = z + 0.3 * z.std() * torch.randn_like(z)
        return model, x, z.argmax(dim=1) if self.loss == "cross_entropy" else z


def half_square(z: Tensor, y: Tensor) -> Tensor:
    """``½ ‖z − y‖²`` a sample."""
    return (z - y).square().sum() / (2 * len(z))


PROBLEMS: Mapping[str, Problem] = {
    "recurrence": Problem(Recurrence, "mse", ("again", "enter"), half_square),
    "pooled tokens": Problem(Tokens, "cross_entropy", ("first", "second"), F.cross_entropy),
    "kept tokens": Problem(lambda: Tokens(pooled=False), "mse", ("first", "second"), half_square),
}
"""A network with another kind of place, a convolution say, is one more entry."""


@dataclass(frozen=True)
class Found:
    """The cosine of a mode's update with the exact one, for a layer of a problem."""

    problem: str
    layer: str
    seed: int
    updates: int
    damping: float
    method: str
    mode: str
    cosine: float


@dataclass(frozen=True)
class Loss:
    """The loss on the training data that a mode came to."""

    problem: str
    seed: int
    mode: str
    updates: int
    loss: float


def exact(problem: Problem, model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The Gauss-Newton block of ``[W, b]`` row by row."""
    at = model.get_submodule(layer)
    assert isinstance(at, nn.Linear)
    whole = torch.cat([at.weight, at.bias[:, None]], dim=1).detach()

    def outputs(w: Tensor) -> Tensor:
        changed = {f"{layer}.weight": w[:, :-1], f"{layer}.bias": w[:, -1]}
        return functional_call(model, changed, (x,))

    jacobian = jacrev(outputs)(whole).flatten(2).detach()
    z = model(x).detach()
    if problem.loss == "cross_entropy":
        p = z.softmax(dim=1)
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        jacobian, left = torch.einsum("nkl,nlp->nkp", hessian, jacobian), jacobian
        return torch.einsum("nkp,nkq->pq", left, jacobian) / len(x)
    return torch.einsum("nkp,nkq->pq", jacobian, jacobian) / len(x)


def gradient(problem: Problem, model: nn.Module, layer: str, x: Tensor, y: Tensor) -> Tensor:
    """``∇[W, b]``."""
    at = model.get_submodule(layer)
    assert isinstance(at, nn.Linear)
    w, b = torch.autograd.grad(problem.objective(model(x), y), [at.weight, at.bias])
    return torch.cat([w, b[:, None]], dim=1).detach()


def aligned(
    name: str, model: nn.Module, x: Tensor, y: Tensor, seed: int, updates: int
) -> list[Found]:
    """Cosines of all modes, layers and dampings at the present parameters."""
    problem, found = PROBLEMS[name], []
    factors = {
        (method, mode): gncompile.curvature(model, problem.loss, x, y, method=method, sharing=mode)
        for method in ("kfra", "kflr")
        for mode in MODES
    }
    for layer in problem.layers:
        slope, block = gradient(problem, model, layer, x, y), exact(problem, model, layer, x)
        for damping in DAMPINGS:
            damped = block + damping * torch.eye(len(block), dtype=block.dtype)
            newton = torch.linalg.solve(damped, slope.flatten())
            for (method, mode), by_layer in factors.items():
                update = by_layer[layer].solve(slope, damping).flatten()
                cosine = float(F.cosine_similarity(newton, update, dim=0))
                found.append(Found(name, layer, seed, updates, damping, method, mode, cosine))
    return found


def trained(name: str, mode: str, seed: int) -> tuple[nn.Module, list[Loss]]:
    """A training with the defaults, factors shared by ``mode``: its model, and the losses it comes to."""
    problem = PROBLEMS[name]
    model, x, y = problem.made(seed)
    trainer = gncompile.compile(model, problem.loss, x, sharing=mode, seed=seed, average=0.0)
    losses = []
    for updates in range(1, UPDATES + 1):
        trainer.step(x, y)
        if updates in (UPDATES // 4, UPDATES // 2, UPDATES):
            losses.append(Loss(name, seed, mode, updates, float(trainer.loss(x, y))))
    return model, losses


def measure(seeds: Sequence[int]) -> tuple[list[Found], list[Loss]]:
    """All problems, seeds and modes; trained is what *expand* has trained."""
    found, losses = [], []
    for name, problem in PROBLEMS.items():
        for seed in seeds:
            model, x, y = problem.made(seed)
            found += aligned(name, model, x, y, seed, 0)
            for mode in MODES:
                model, reached = trained(name, mode, seed)
                losses += reached
                if mode == MODES[0]:
                    found += aligned(name, model, x, y, seed, UPDATES)
    return found, losses


def cosine_rows(found: Sequence[Found]) -> list[list[str]]:
    """Means over the seeds, with their range."""
    cells: dict[tuple[str, str, str, str, str], dict[str, list[float]]] = {}
    for each in found:
        at = (each.problem, each.layer, str(each.updates), f"{each.damping:g}", each.method)
        cells.setdefault(at, {}).setdefault(each.mode, []).append(each.cosine)
    rows = [["network", "layer", "updates", "λ", "method", *MODES]]
    for at, by_mode in cells.items():
        rows.append(
            [*at, *(f"{statistics.mean(by_mode[m]):.2f} ± {spread(by_mode[m]):.2f}" for m in MODES)]
        )
    return rows


def loss_rows(losses: Sequence[Loss]) -> list[list[str]]:
    """Medians over the seeds."""
    cells: dict[tuple[str, int], dict[str, list[float]]] = {}
    for each in losses:
        cells.setdefault((each.problem, each.updates), {}).setdefault(each.mode, []).append(
            each.loss
        )
    rows = [["network", "updates", *MODES]]
    for (problem, updates), by_mode in cells.items():
        rows.append(
            [problem, str(updates), *(f"{statistics.median(by_mode[m]):.4g}" for m in MODES)]
        )
    return rows


def spread(values: Sequence[float]) -> float:
    """Half the range."""
    return (max(values) - min(values)) / 2


def picture(found: Sequence[Found], path: Path) -> None:
    """Cosines of KFRA's updates at the damping :data:`SHOWN`, a panel for each network and moment."""
    from matplotlib.figure import Figure

    panels = [(name, updates) for name in PROBLEMS for updates in (0, UPDATES)]
    figure = Figure(figsize=(2.3 * len(panels), 3.2), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (name, updates) in zip(axes, panels, strict=True):
        layers = PROBLEMS[name].layers
        for number, mode in enumerate(MODES):
            for place, layer in enumerate(layers):
                here = (name, layer, updates, SHOWN, "kfra", mode)
                cosines = [f.cosine for f in found if key(f) == here]
                at = place + 0.25 * (number - 1)
                label = mode if place == 0 else None
                panel.bar(at, statistics.mean(cosines), 0.25, color=f"C{number}", label=label)
                panel.plot([at] * len(cosines), cosines, "k.", ms=3)
        panel.set_xticks(range(len(layers)), layers)
        panel.set_title(f"{name}, {updates} updates", fontsize=9)
    axes[0].set_ylabel(f"cosine with the exact update, λ = {SHOWN:g}")
    axes[0].legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def key(found: Found) -> tuple[Any, ...]:
    """What a bar of the picture stands for."""
    return (found.problem, found.layer, found.updates, found.damping, found.method, found.mode)


def main(
    seeds: Annotated[int, typer.Option(help="Seeds of networks and data.")] = 3,
    folder: Annotated[Path, typer.Option(help="Where results go.")] = (
        ROOT / "benchmarks" / "results" / "sharing"
    ),
) -> None:
    """Measure, print the tables, and write them with a picture."""
    torch.set_num_threads(1)
    found, losses = measure(range(seeds))
    tables = [table(cosine_rows(found), right=range(2, 4)), table(loss_rows(losses), right=[1])]
    print("\n\n".join(tables))
    records = {
        "environment": environment(),
        "cosines": [asdict(each) for each in found],
        "losses": [asdict(each) for each in losses],
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "sharing.json", json.dumps(records, indent=1) + "\n")
    atomic_write(folder / "sharing.txt", "\n\n".join(tables) + "\n")
    picture(found, folder / "sharing.png")


if __name__ == "__main__":
    typer.run(main)
