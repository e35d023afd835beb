"""Tables that whole numbers look up: gradient, counts and factors against torch.func; bad indices."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.errors import BatchError


class Text(nn.Module):
    """Tokens with a padding, learned positions, and a number beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3, padding_idx=0)
        self.position = nn.Parameter(torch.randn(4, 3))
        self.mix, self.out = nn.Linear(3, 3), nn.Linear(4, 2)

    def forward(self, tokens: Tensor, x: Tensor) -> Tensor:
        seen = (tokens != 0).unsqueeze(-1).to(x.dtype)
        h = torch.tanh(self.mix(self.table(tokens) + self.position)) * seen
        return self.out(torch.cat([h.sum(dim=1), x], dim=1))


class Columns(nn.Module):
    """A table of data: two categories in one input, one of them as one-hot rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(5, 2), nn.Linear(7, 1)

    def forward(self, x: Tensor, categories: Tensor) -> Tensor:
        first = self.table(categories[:, 0])
        second = nn.functional.one_hot(categories[:, 1], 4).to(x.dtype)
        return self.out(torch.cat([x, first, second], dim=1))


class Table(nn.Module):
    """A number and one category a sample, ``[N]``."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(7, 4), nn.Linear(5, 2)

    def forward(self, x: Tensor, category: Tensor) -> Tensor:
        return self.out(torch.cat([x, self.table(category)], dim=1))


class Alone(nn.Module):
    """Whole numbers are the only input, of two columns of one table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 2), nn.Linear(4, 3)
        self.register_buffer("offsets", torch.tensor([0, 4]))

    def forward(self, categories: Tensor) -> Tensor:
        return self.out(torch.sin(self.table(categories + self.offsets).flatten(1)))


def made(name: str, samples: int) -> tuple[nn.Module, tuple[Tensor, ...], Tensor]:
    torch.manual_seed(0)
    real = torch.randn(samples, 1, dtype=torch.float64)
    model: nn.Module
    if name == "text":
        model, x = Text().double(), (torch.randint(7, (samples, 4)), real)
    elif name == "columns":
        model, x = Columns().double(), (real, torch.randint(4, (samples, 2)))
    elif name == "table":
        model, x = Table().double(), (real, torch.randint(7, (samples,)))
    else:
        model, x = Alone().double(), (torch.randint(4, (samples, 2)),)
    return model, x, torch.randn_like(model(*x))


@pytest.mark.parametrize("name", ["text", "columns", "table", "alone"])
def test_everything_is_what_torch_func_says(name: str) -> None:
    model, x, _ = made(name, 6)
    report = gncompile.verify(model, nn.MSELoss(), x)
    assert report.ok, [check for check in report.checks if not check.ok]
    assert "table" in {check.layer for check in report.checks}


@pytest.mark.parametrize("name", ["text", "columns", "table", "alone"])
def test_backends_agree_and_steps_learn(name: str) -> None:
    losses = []
    for backend in ("torch", "reference"):
        model, x, y = made(name, 12)
        trainer = gncompile.compile(model, nn.MSELoss(), x, backend=backend)
        before = float(trainer.loss(x, y))
        padding = model.table.weight[0].detach().clone()
        for _ in range(4):
            trainer.step(x, y)
        losses.append(float(trainer.loss(x, y)))
        assert losses[-1] < before
        if name == "text":  # torch's padding row gets no gradient
            assert torch.equal(padding, model.table.weight[0])
    # rounding grows over four steps; a wrong sum in one backend would differ in the first digits
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_categories_out_of_range_are_refused_before_anything_is_done() -> None:
    model, (x, categories), y = made("columns", 6)
    trainer = gncompile.compile(model, nn.MSELoss(), (x, categories))
    before = copy.deepcopy(model.state_dict())
    for bad in (categories - 1, categories + 4):
        with pytest.raises(BatchError, match=r"the smallest table that looks it up has \d rows"):
            trainer.step((x, bad), y)
    with pytest.raises(BatchError, match=r"pass x.long\(\)"):
        trainer.step((x, categories.double()), y)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_a_checkpoint_knows_which_inputs_are_whole(tmp_path: Path) -> None:
    model, x, y = made("columns", 8)
    trainer = gncompile.compile(model, nn.MSELoss(), x)
    trainer.step(x, y)
    trainer.save(tmp_path / "t.safetensors")
    other, *_ = made("columns", 8)
    again = gncompile.Trainer.resume(tmp_path / "t.safetensors", other)
    twin = copy.deepcopy(trainer)
    for each in (trainer, again, twin):
        each.step(x, y)
    assert torch.equal(trainer.loss(x, y), again.loss(x, y))
    assert torch.equal(trainer.loss(x, y), twin.loss(x, y))
