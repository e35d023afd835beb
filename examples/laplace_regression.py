"""Error bars of a regression: Laplace's approximation of a trained network, with the prior of most evidence.

python examples/laplace_regression.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import gncompile

SIGMA = 0.2


def measurements(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """A wave with noise, measured in two stretches of [-4, 4] with a gap between them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(samples, 1, generator=generator, dtype=torch.float64) * 2 + 2
    x[::2] *= -1
    noise = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    return x, torch.sin(1.5 * x) + SIGMA * noise


def fitted(x: Tensor, y: Tensor, width: int = 30, updates: int = 60) -> nn.Module:
    """A network that fits them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).double()
    trainer = gncompile.compile(model, "mse", x[:2], l2={"*.weight": 1e-4})
    trainer.fit([(x, y)], updates=updates, progress=False)
    return model


def main() -> None:
    """Fit, find the prior, and print mean, error bars and the shares of new measurements within them."""
    x, y = measurements(120, seed=0)
    posterior = gncompile.laplace(fitted(x, y), "mse", x, y, noise=SIGMA).optimise_prior()
    print(posterior)
    print(f"{posterior.effective_parameters:.1f} parameters are decided by the data")

    grid = torch.linspace(-6, 6, 13, dtype=torch.float64)[:, None]
    prediction = posterior.predict(grid)
    for at, mean, sd in zip(grid, prediction.mean, prediction.standard_deviation, strict=True):
        print(f"x = {at.item():4.1f}   {mean.item():6.2f} ± {sd.item():.2f}")

    new_x, new_y = measurements(1000, seed=1)
    found = posterior.predict(new_x)
    spread = (
        found.variance + SIGMA**2
    ).sqrt()  # of a measurement: that of the function, and its noise
    for k in (1, 2):
        inside = ((new_y - found.mean).abs() < k * spread).double().mean()
        print(f"{inside:.1%} of new measurements within {k} standard deviations")


if __name__ == "__main__":
    main()
