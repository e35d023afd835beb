"""A training loop of one's own: an optimiser that takes batches, a validation, and a checkpoint of torch's.

python examples/plain_loop.py
"""

from __future__ import annotations

import io

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from gncompile.optim import GaussNewton


def data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points in the plane on two arms of a spiral, and which arm they are on."""
    draw = torch.Generator().manual_seed(seed)
    arm = torch.randint(2, (count,), generator=draw)
    angle = 6 * torch.rand(count, generator=draw).sqrt()
    turned = angle + torch.pi * arm
    points = (angle / 3)[:, None] * torch.stack([turned.cos(), turned.sin()], dim=1)
    return points + 0.15 * torch.randn(count, 2, generator=draw), arm


def network() -> nn.Module:
    """Two inputs, two classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2)
    )


def train(epochs: int = 10) -> list[float]:
    """Train from epoch to epoch, with a break in the middle; returns the validation losses."""
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(*data(3000, seed=0)), 500, shuffle=True, generator=order)
    x_new, y_new = data(1000, seed=1)
    model, loss_function = network(), nn.CrossEntropyLoss()
    optimiser, losses = GaussNewton(model, loss_function, l2=1e-4), []
    for epoch in range(epochs):
        for x, y in loader:
            loss = optimiser.step(x, y)  # in place of zero_grad, model(x), backward and step
        with torch.no_grad():
            losses.append(float(loss_function(model(x_new), y_new)))
        print(f"epoch {epoch}: loss {loss:.4f}, validation {losses[-1]:.4f}")
        if epoch == epochs // 2:
            file = io.BytesIO()  # as torch.save(..., "checkpoint.pt") would
            torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
            model = network()  # another process, say
            model.load_state_dict(saved["model"])
            optimiser = GaussNewton(model, loss_function, l2=1e-4)
            optimiser.load_state_dict(saved["optimiser"])
    optimiser.trainer.finish()  # the averaged parameters where they are better, as fit leaves them
    return losses


if __name__ == "__main__":
    train()
