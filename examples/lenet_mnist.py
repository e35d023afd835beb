"""LeNet-5 on MNIST: convolutions, maxima of windows, and what two passes over 10,000 digits come to.

Run it: ``python examples/lenet_mnist.py``. The digits are looked for in the folder GNCOMPILE_DATA, then in
the cache, and else downloaded.
"""

import time

from torch import Tensor, manual_seed, nn

import gncompile
from gncompile.data import Batches, DataSpec, load

METHODS = ("auto", "adam")


def lenet() -> nn.Module:
    """LeNet-5 as it is written today: rectifiers for sigmoids, maxima for means."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def accuracy(trainer: gncompile.Trainer, x: Tensor, y: Tensor) -> float:
    """The share of digits that are read right."""
    return float((trainer.predict(x).argmax(1) == y).float().mean())


def train(method: str, batches: Batches, held_out: tuple[Tensor, Tensor], epochs: int = 2) -> gncompile.Trainer:
    """Train anew with ``method``, and tell after each pass over ``batches`` what has been learned."""
    manual_seed(0)
    trainer = gncompile.compile(lenet(), "cross_entropy", batches.x[:256], method=method)
    if method == "auto":
        print(trainer.summary())
    seconds = 0.0
    for epoch in range(1, epochs + 1):
        begun = time.perf_counter()
        trainer.fit(batches, epochs=1, progress=False)
        seconds += time.perf_counter() - begun
        print(
            f"{method:<5} epoch {epoch}: loss {trainer.evaluate(batches.x, batches.y):.4f}, on new digits "
            f"{trainer.evaluate(*held_out):.4f} and {accuracy(trainer, *held_out):.2%} right, after {seconds:.1f} s"
        )
    return trainer


def main() -> None:
    """Both methods from the same start, on the same digits."""
    data = load(DataSpec("mnist", train=10_000, validation=2_000))
    for method in METHODS:
        train(method, Batches(data.train_x, data.train_y, batch_size=256), (data.validation_x, data.validation_y))


if __name__ == "__main__":
    main()
