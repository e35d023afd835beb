"""Lightning with manual optimisation: its loop, validation and checkpoints around Gauss-Newton steps.

python examples/lightning_manual.py
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gncompile.optim import GaussNewton


class Classifier(lightning.LightningModule):
    """A network whose optimiser takes the batch; Lightning runs no backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.network = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
        self.loss = nn.CrossEntropyLoss()

    def configure_optimizers(self) -> GaussNewton:
        """The network is compiled at the first step, or when a checkpoint is loaded."""
        return GaussNewton(self.network, self.loss)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """One step of the optimiser; Lightning's own takes keywords."""
        x, y = batch
        loss = self.optimizers().step(x=x, y=y)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], _: int) -> None:
        """An ordinary forward pass, at the parameters that training goes on from."""
        x, y = batch
        self.log("validation_loss", self.loss(self.network(x), y))


def loader(count: int, seed: int) -> DataLoader:
    """Three classes, by the greatest of three products of features."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=draw)
    y = (x[:, :3] * x[:, 3:6]).argmax(dim=1)
    return DataLoader(TensorDataset(x, y), batch_size=300)


def train(folder: Path, epochs: int, resume: str | None = None) -> tuple[lightning.Trainer, str]:
    """Train up to so many epochs, from a checkpoint if there is one; returns the last one's path."""
    lightning.seed_everything(0, verbose=False)
    best = ModelCheckpoint(folder, monitor="validation_loss", save_last=True)
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[best], logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Classifier(), loader(1500, seed=0), loader(600, seed=1), ckpt_path=resume)
    return trainer, best.last_model_path


def main() -> None:
    """Four epochs, and four more from the checkpoint."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        trainer, path = train(Path(folder), epochs=4)
        print(f"validation loss after 4 epochs {trainer.callback_metrics['validation_loss']:.4f}")
        trainer, _ = train(Path(folder), epochs=8, resume=path)
        print(f"validation loss after 8 epochs {trainer.callback_metrics['validation_loss']:.4f}")


if __name__ == "__main__":
    main()
