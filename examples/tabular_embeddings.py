"""A table of categories and numbers: embeddings of the ones beside the others as they are.

Run it: ``python examples/tabular_embeddings.py``. The table is made up: the price of a ride depends on
where it starts and ends, on its length, and on the hour.
"""

import math
import time

import torch
from torch import Tensor, nn

import gncompile

PLACES, HOURS, NOISE = 40, 24, 0.1
UPDATES = {"auto": 100, "adam": 300}  # about the same time


class Prices(nn.Module):
    """Inputs are a tensor of whole numbers (from, to, hour) and one of numbers (length)."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Embedding(PLACES, 4)  # one table with two uses
        self.hour = nn.Embedding(HOURS, 3)
        self.rest = nn.Sequential(
            nn.Linear(12, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1)
        )

    def forward(self, categories: Tensor, numbers: Tensor) -> Tensor:
        start, end, hour = categories.unbind(1)
        columns = self.place(start), self.place(end), self.hour(hour), numbers
        return self.rest(torch.cat(columns, dim=1))


def rides(count: int, seed: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Rides between places on a circle: ``((categories, numbers), prices)``."""
    generator = torch.Generator().manual_seed(seed)
    categories = torch.randint(PLACES, (count, 3), generator=generator)
    categories[:, 2] %= HOURS
    start, end, hour = categories.unbind(1)
    length = torch.rand(count, 1, generator=generator)
    apart = torch.sin(math.pi * (start - end) / PLACES).abs()
    busy = 1 + 0.5 * torch.cos(2 * math.pi * (hour - 17) / HOURS)
    noise = NOISE * torch.randn(count, generator=generator)
    return (categories, length), (busy * (apart + length[:, 0]) + noise)[:, None]


def train(method: str, count: int, updates: int) -> float:
    """Train anew; the root of the mean squared error on new rides, of which NOISE cannot be foretold."""
    x, y = rides(count, seed=0)
    torch.manual_seed(0)
    trainer = gncompile.compile(Prices(), "mse", x, method)
    if method != "adam":
        print(trainer.summary().partition("\n\nphase")[0], "\n")
    begun = time.perf_counter()
    rows = torch.randint(count, (updates, 500), generator=torch.Generator().manual_seed(1))
    batches = [(tuple(each[row] for each in x), y[row]) for row in rows]
    trainer.fit(batches, updates=updates, progress=False)
    seconds, errors = time.perf_counter() - begun, []
    for each in (x, y), rides(5_000, seed=2):
        errors.append(math.sqrt(2 * trainer.evaluate(*each)))
    print(f"{method}: error {errors[0]:.3f}, on new rides {errors[1]:.3f}, {seconds:.1f} s")
    return errors[1]


if __name__ == "__main__":
    for method, updates in UPDATES.items():
        train(method, 20_000, updates)
