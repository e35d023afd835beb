"""A small transformer encoder that reads MNIST's digits row by row: 28 tokens of 28 pixels.

Run it: ``python examples/transformer_mnist.py``. The digits are looked for in the folder GNCOMPILE_DATA, then
in the cache, and else downloaded.
"""

import time

import torch
from torch import Tensor, nn

import gncompile
from gncompile.data import Batches, DataSpec, load

EPOCHS = {"auto": 2, "adam": 8}  # about the same time
WIDTH, LAYERS = 32, 2


class Encoder(nn.Module):
    """Layers of attention over rows, with learned positions; the mean of all tokens is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(28, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, LAYERS)
        self.norm = nn.LayerNorm(WIDTH)
        self.classes = nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x.unflatten(1, (28, 28))) + self.positions
        return self.classes(self.norm(self.layers(tokens)).mean(1))


def train(method: str, batches: Batches, held_out: tuple[Tensor, Tensor], epochs: int) -> float:
    """Train anew, and tell after each pass what was learned; the share of new digits read right."""
    torch.manual_seed(0)
    trainer = gncompile.compile(Encoder(), "cross_entropy", batches.x[:256], method)
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
