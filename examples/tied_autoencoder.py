"""An autoencoder whose decoder is its encoder transposed: every weight has two uses.

Run it: ``python examples/tied_autoencoder.py``. It is trained on drawn curves, so nothing is downloaded.
"""

import itertools
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gncompile
from gncompile.data import Batches, DataSpec, load

UPDATES = {"kfra": 60, "adam": 200}  # about the same time
SIZES = (784, 200, 50, 6)


class Tied(nn.Module):
    """``x -> tanh(W x + b)`` down to the code, and back up by the same weights: ``h Wᵀ + c``."""

    def __init__(self) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(SIZES))
        self.down = nn.ModuleList(nn.Linear(n, m) for n, m in pairs)
        self.shifts = nn.ParameterList(torch.zeros(n) for n, _ in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.down[:-1]:
            x = torch.tanh(layer(x))
        x = self.down[-1](x)
        for layer, shift in reversed(list(zip(self.down, self.shifts, strict=True))):
            x = F.linear(x, layer.weight.t(), shift)
            x = x if layer is self.down[0] else torch.tanh(x)
        return x


def train(method: str, x: Tensor, held_out: Tensor, updates: int) -> float:
    """Train anew; the loss of new curves."""
    torch.manual_seed(0)
    trainer = gncompile.compile(Tied(), "bce_with_logits", x[:500], method)
    if method != "adam":
        print(trainer.summary().partition("\n\nphase")[0], "\n")
    begun = time.perf_counter()
    trainer.fit(Batches(x, x, batch_size=500), updates=updates, progress=False)
    seconds, loss = time.perf_counter() - begun, trainer.evaluate(held_out, held_out)
    print(f"{method}: loss {trainer.evaluate(x, x):.1f}, of new curves {loss:.1f}, {seconds:.1f} s")
    return loss


def main() -> None:
    """Both methods from the same start, on the same curves."""
    data = load(DataSpec("curves", train=5_000, validation=1_000))
    for method, updates in UPDATES.items():
        train(method, data.train_x, data.validation_x, updates)


if __name__ == "__main__":
    main()
