"""LeNet-5 on MNIST: convolutions and maxima of windows, trained on 10,000 digits.

Run it: ``python examples/lenet_mnist.py``. The digits are looked for in the folder GNCOMPILE_DATA, then in
the cache, and else downloaded.
"""

import time

from torch import Tensor, manual_seed, nn

import gncompile
from gncompile.data import Batches, DataSpec, load

EPOCHS = {"auto": 2, "adam": 8}  # about the same time


def network() -> nn.Module:
    """LeNet-5 as it is written today: rectifiers for sigmoids, maxima for means."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def train(method: str, batches: Batches, held_out: tuple[Tensor, Tensor], epochs: int) -> float:
    """Train anew, and tell after each pass what was learned; the share of new digits read right."""
    manual_seed(0)
    trainer = gncompile.compile(network(), "cross_entropy", batches.x[:256], method)
    if method == "auto":
        print(trainer.summary().partition("\n\nphase")[0], "\n")
    right, seconds = 0.0, 0.0
    for epoch in range(1, epochs + 1):
        begun = time.perf_counter()
        trainer.fit(batches, epochs=1, progress=False)
        seconds += time.perf_counter() - begun
        loss, (x, y) = trainer.evaluate(batches.x, batches.y), held_out
        right = float((trainer.predict(x).argmax(1) == y).float().mean())
        print(f"{method}, pass {epoch}: loss {loss:.4f}, {right:.1%} right, {seconds:.1f} s")
    return right


def main() -> None:
    """Both methods from the same start, on the same digits."""
    data = load(DataSpec("mnist", train=10_000, validation=2_000))
    for method, epochs in EPOCHS.items():
        batches = Batches(data.train_x, data.train_y, batch_size=256)
        train(method, batches, (data.validation_x, data.validation_y), epochs)


if __name__ == "__main__":
    main()
