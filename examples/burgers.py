"""u_t + u u_x = ν u_xx, ν = 0.01/π, u(x, 0) = -sin(πx), u(±1, t) = 0: a shock forms at x = 0.

python examples/burgers.py               # → burgers.png, where matplotlib is installed; minutes
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import gncompile
from gncompile import Box, Term

NU = 0.01 / np.pi


def reference(points: Tensor) -> Tensor:
    """Cole and Hopf's formula, its two integrals by Gauss and Hermite's quadrature.

    ``u = -∫ sin(πy) f(y) e^{-z²} dz / ∫ f(y) e^{-z²} dz``, ``y = x - z √(4νt)``, ``f = e^{-cos(πy)/(2πν)}``
    """
    x, t = points.numpy().T[:, :, None]
    z, w = np.polynomial.hermite.hermgauss(100)
    y = x - z * np.sqrt(4 * NU * t)
    exponent = -np.cos(np.pi * y) / (2 * np.pi * NU)
    f = w * np.exp(exponent - exponent.max(axis=1, keepdims=True))
    return torch.from_numpy(-(np.sin(np.pi * y) * f).sum(axis=1) / f.sum(axis=1))


def main(updates: int = 400) -> float:
    """Train, and return the relative L2 error."""
    torch.manual_seed(0)
    sizes = [(2, 20), (20, 20), (20, 20), (20, 1)]
    layers = [each for size in sizes for each in (nn.Linear(*size), nn.Tanh())]
    net = nn.Sequential(*layers[:-1]).double()
    box = Box({"x": (-1, 1), "t": (0, 1)})
    terms = {
        "burgers": Term("u__t + u*u__x - 0.01/pi*u__x__x", box.interior(2540)),
        "sides": Term("u", box.faces(80, of="x")),
        "start": Term("u + sin(pi*x)", box.face(160, t=0)),
    }
    problem = gncompile.residuals(net, "x t", "u", terms, box=box)
    # The shock is thinner than the points lie apart: others in every step.
    problem.compile().fit(updates=updates, resample_every=1)
    axis = torch.linspace(-1, 1, 256, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, torch.linspace(0, 1, 100, dtype=torch.float64))
    error = problem.relative_l2(reference, grid)
    print(f"error {error:.2g}")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return error
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="x", ylabel="u(x, 1)")
    line = torch.stack([axis, torch.ones_like(axis)], dim=1)
    axes.plot(axis, problem.evaluate(line)["u"], label="network")
    axes.plot(axis, reference(line), "k:", label="reference")
    axes.legend()
    figure.savefig("burgers.png")
    return error


if __name__ == "__main__":
    main()
