"""-Δu = 2π² sin(πx) sin(πy) on the unit square, u = 0 on its boundary; the solution is sin(πx) sin(πy).

python examples/poisson_2d.py            # → poisson_2d.png, where matplotlib is installed
"""

from __future__ import annotations

import torch
from torch import nn

import gncompile
from gncompile import Box, Term


def main(updates: int = 200) -> float:
    """Train, and return the relative L2 error."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1)).double()
    square = Box({"x": (0, 1), "y": (0, 1)})
    terms = {
        "interior": Term("u__x__x + u__y__y + 2*pi**2*sin(pi*x)*sin(pi*y)", square.interior(900)),
        "boundary": Term("u", square.faces(120)),
    }
    problem = gncompile.residuals(net, "x y", "u", terms, box=square)
    history = problem.compile().fit(updates=updates, progress=False)
    axis = torch.linspace(0, 1, 101, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    error = problem.relative_l2("sin(pi*x)*sin(pi*y)", points)
    print(f"{len(history)} updates, interior {history.interior[-1]:.2g}, error {error:.2g}")
    picture(problem.evaluate(points)["u"], points)
    return error


def picture(u: torch.Tensor, points: torch.Tensor) -> None:
    """The solution, and what is wrong with it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    truth = torch.sin(torch.pi * points).prod(dim=1)
    for place, (name, values) in enumerate({"u": u, "u - u*": u - truth}.items(), start=1):
        axes = figure.add_subplot(1, 2, place, title=name, xlabel="x", ylabel="y")
        grid = values.reshape(101, 101).T
        figure.colorbar(axes.imshow(grid, origin="lower", extent=(0, 1, 0, 1)), ax=axes)
    figure.savefig("poisson_2d.png")


if __name__ == "__main__":
    main()
