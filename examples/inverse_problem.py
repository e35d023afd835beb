"""How well does a rod conduct heat? u_t = k u_xx, and noisy measurements of u at a few places.

The truth is k = 0.25, u = exp(-kπ²t) sin(πx); k is trained with the network.
python examples/inverse_problem.py       # → inverse_problem.png, where matplotlib is installed
"""

from __future__ import annotations

import torch
from torch import nn

import gncompile
from gncompile import Box, Term


def main(updates: int = 100) -> float:
    """Train, and return k."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 1))
    box = Box({"x": (0, 1), "t": (0, 1)})
    places = torch.rand(100, 2, dtype=torch.float64)
    x, t = places.T
    measured = torch.exp(-0.25 * torch.pi**2 * t) * torch.sin(torch.pi * x)
    measured += 0.01 * torch.randn(100, dtype=torch.float64)
    terms = {
        "heat": Term("u__t - k*u__x__x", box.interior(400)),
        "ends": Term("u", box.faces(40, of="x")),
        "measured": Term("u - y", places, weight=10, fields={"y": measured}),
    }
    problem = gncompile.residuals(net.double(), "x t", "u", terms, unknowns={"k": 1.0}, box=box)
    history = problem.compile().fit(updates=updates, validate_every=1, progress=False)
    k = problem.unknowns["k"]
    print(f"k = {k:.4f}, the truth is 0.25")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return k
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="updates", ylabel="k")
    axes.plot(history.update, history.k)
    axes.axhline(0.25, linestyle=":", color="black")
    figure.savefig("inverse_problem.png")
    return k


if __name__ == "__main__":
    main()
