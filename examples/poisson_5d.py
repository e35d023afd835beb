"""-Δu = π² Σ cos(πx_i) in the unit cube of five dimensions; the solution is Σ cos(πx_i).

python examples/poisson_5d.py            # → poisson_5d.png, where matplotlib is installed
"""

from __future__ import annotations

import torch
from torch import nn

import gncompile
from gncompile import Box, Term


def main(updates: int = 120, points: int = 2000) -> float:
    """Train, and return the relative L2 error."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 64), nn.Tanh(), nn.Linear(64, 1)).double()
    names = ["x1", "x2", "x3", "x4", "x5"]
    cube = Box(dict.fromkeys(names, (0, 1)))
    solution = " + ".join(f"cos(pi*{name})" for name in names)
    laplacian = " + ".join(f"u__{name}__{name}" for name in names)  # which becomes one stream
    terms = {
        "interior": Term(f"{laplacian} + pi**2*({solution})", cube.interior(points)),
        "boundary": Term(f"u - ({solution})", cube.faces(points // 4)),
    }
    problem = gncompile.residuals(net, names, "u", terms, box=cube)
    at = torch.rand(9000, 5, dtype=torch.float64)
    error: list[tuple[int, float]] = []
    trainer = problem.compile()
    for _ in range(updates // 20):
        trainer.fit(updates=20, progress=False)
        error.append((trainer.updates, problem.relative_l2(solution, at)))
        print(f"{error[-1][0]} updates, error {error[-1][1]:.2g}")
    picture(error)
    return error[-1][1]


def picture(error: list[tuple[int, float]]) -> None:
    """The error against updates."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="updates", ylabel="relative L2 error", yscale="log")
    axes.plot(*zip(*error, strict=True), marker="o")
    figure.savefig("poisson_5d.png")


if __name__ == "__main__":
    main()
