"""An activation of one's own: declared in five lines, looked at, and trained with every method.

Run it: ``python examples/custom_activation.py``.
"""

import torch
from torch import nn

import gncompile
from gncompile.functions import softplus


@gncompile.transfer_function
def smooth_step(x, steepness=2.0):
    """A ramp from 0 to 1 with rounded corners."""
    ramp = softplus(steepness * (x + 0.5)) - softplus(steepness * (x - 0.5))
    return ramp / steepness


METHODS = ("kfra", "kflr", "kfac", "kfac_rp", "empirical", "adam", "sgd")


def train(method: str, updates: int = 8) -> tuple[float, float]:
    """First and last training loss of a small regression."""
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 64)[:, None]
    y = torch.sin(2 * x)
    model = nn.Sequential(nn.Linear(1, 16), smooth_step.module(), nn.Linear(16, 1))
    trainer = gncompile.compile(model, "mse", example_inputs=x, method=method)
    losses = [float(trainer.step(x, y).loss) for _ in range(updates)]
    return losses[0], losses[-1]


def main() -> None:
    """Print the function's page, and what each method makes of it."""
    print(gncompile.transfer_page(smooth_step))
    for method in METHODS:
        first, last = train(method)
        print(f"{method:<10} {first:.4f} -> {last:.4f}")


if __name__ == "__main__":
    main()
