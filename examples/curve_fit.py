"""Curve fitting: a formula's parameters with standard errors, an error band, and a fit of counts.

Run it: ``python examples/curve_fit.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gncompile
from gncompile.losses import weighted


class Decay(nn.Module):
    """``y = a e^(-x/τ) + b``."""

    def __init__(self, a: float, tau: float, b: float) -> None:
        super().__init__()
        self.a, self.tau, self.b = (nn.Parameter(torch.tensor([v]).double()) for v in (a, tau, b))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * torch.exp(-x / self.tau) + self.b


def measurements(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Times, values and the standard deviations of their errors, ``[N, 1]`` each."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.linspace(0, 10, 40, dtype=torch.float64)[:, None]
    sigma = 0.02 + 0.05 * torch.exp(-x)
    y = 2.5 * torch.exp(-x / 1.7) + 0.4
    return x, y + sigma * torch.randn(40, 1, generator=draw, dtype=torch.float64), sigma


def counts(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Doses, and events whose rate is ``e^(0.3 + 0.8 x)``."""
    draw = torch.Generator().manual_seed(seed)
    x = 2 * torch.rand(200, 1, generator=draw, dtype=torch.float64)
    return x, torch.poisson(torch.exp(0.3 + 0.8 * x), generator=draw)


def main() -> None:
    """Print both fits, and the curve with its standard error at a few places."""
    x, y, sigma = measurements()
    decay = gncompile.fit(
        Decay(1.0, 1.0, 0.0), weighted("mse"), x, (y, 1 / sigma**2), absolute_sigma=True
    )
    print(f"{decay}\n")
    assert decay.covariance is not None
    at = torch.tensor([[0.0], [2.0], [8.0]], dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(
        lambda a, tau, b: (a * torch.exp(-at / tau) + b).flatten(), tuple(decay.parameters.values())
    )
    j = torch.cat(slopes, dim=1)
    errors = (j @ decay.covariance * j).sum(dim=1).sqrt()
    for time, value, error in zip(at, decay.trainer.predict(at), errors, strict=True):
        print(f"y({float(time):g}) = {float(value):.3f} ± {float(error):.3f}")

    doses, events = counts()
    print(f"\n{gncompile.fit(nn.Linear(1, 1).double(), nn.PoissonNLLLoss(), doses, events)}")


if __name__ == "__main__":
    main()
