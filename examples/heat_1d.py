"""u_t = u_xx / 4 on 0 ≤ x ≤ 1, u = 0 at its ends, u(x, 0) = sin(πx); u = exp(-π²t/4) sin(πx).

The ends hold by construction: the network is multiplied by x (1 - x), and no term is needed for them.
python examples/heat_1d.py               # → heat_1d.png, where matplotlib is installed
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gncompile
from gncompile import Box, Term

SOLUTION = "exp(-pi**2*t/4)*sin(pi*x)"


class Rod(nn.Module):
    """A network that is 0 at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 1))

    def forward(self, p: Tensor) -> Tensor:
        x = p[:, :1]
        return x * (1 - x) * self.inner(p)


def main(updates: int = 150) -> float:
    """Train, and return the relative L2 error."""
    torch.manual_seed(0)
    box = Box({"x": (0, 1), "t": (0, 1)})
    terms = {
        "heat": Term("u__t - u__x__x/4", box.interior(900)),
        "start": Term("u - sin(pi*x)", box.face(60, t=0)),
    }
    problem = gncompile.residuals(Rod().double(), "x t", "u", terms, box=box)
    problem.compile().fit(updates=updates, progress=False)
    axis = torch.linspace(0, 1, 101, dtype=torch.float64)
    error = problem.relative_l2(SOLUTION, torch.cartesian_prod(axis, axis))
    print(f"error {error:.2g}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return error
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="x", ylabel="u")
    for t in (0.0, 0.25, 0.5, 1.0):
        line = torch.stack([axis, torch.full_like(axis, t)], dim=1)
        axes.plot(axis, problem.evaluate(line)["u"], label=f"t = {t}")
        axes.plot(
            axis, torch.exp(-torch.tensor(torch.pi**2 * t / 4)) * torch.sin(torch.pi * axis), "k:"
        )
    axes.legend()
    figure.savefig("heat_1d.png")
    return error


if __name__ == "__main__":
    main()
