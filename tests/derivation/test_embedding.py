"""Tables that whole numbers look up: gradient, counts and factors against torch.func; bad indices."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

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
        first, second = categories.unbind(1)
        first = self.table(first)
        second = nn.functional.one_hot(second, 4).to(x.dtype)
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
        categories = torch.stack([torch.full((samples,), 4), torch.arange(samples) % 4], dim=1)
        model, x = Columns().double(), (real, categories)
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
    for bad, where, rows in (([-1, 0], 0, 5), ([5, 0], 0, 5), ([0, -1], 1, 4), ([4, 4], 1, 4)):
        found = rf"'categories'\[:, {where}\] holds .*, and the smallest table .* has {rows} rows"
        with pytest.raises(BatchError, match=found):
            trainer.step((x, torch.tensor([[4, 3]] * 5 + [bad])), y)
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


class TiedToTable(nn.Module):
    """A table whose padding's row is a constant to the lookup, but a row of the output's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(5, 3, padding_idx=1), nn.Linear(3, 3)
        with torch.no_grad():
            self.table.weight[1] = torch.tensor([1.5, -1.0, 0.5])  # torch begins with 0

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.mix(self.table(tokens).sum(dim=1)))
        return nn.functional.linear(h, self.table.weight)


ALONE = {"momentum": False, "layer_steps": 0, "average": 0.0, "step_growth": None}
EXACT = {**ALONE, "solver": "exact", "damping_tries": 1, "acceleration": None}
ITERATED = {**ALONE, "search_steps": 0, "quadratic_share": 1.0, "curvature_share": 1.0}


@pytest.mark.parametrize(
    "options",
    [
        {**EXACT, "exact_form": "primal"},
        {**EXACT, "exact_form": "dual"},
        {**ITERATED, "solver": "newton_cg", "cg_tolerance": 1e-14},
        {**ITERATED, "solver": "block_hessian_free", "blocks": {"*": "all"}, "cg_iterations": 60},
    ],
    ids=lambda o: o.get("exact_form", o["solver"]),
)
def test_l2_moves_the_padding_row_but_by_it_no_output(options: dict[str, object]) -> None:
    """J has no column for the padding's row, and all that a step makes of J agrees, its length too."""
    torch.manual_seed(0)
    model, damping, l2 = TiedToTable().double(), 0.05, 0.2
    x, y = torch.randint(5, (9, 2)), torch.randn(9, 5).double()
    at = {name: p.detach().clone() for name, p in model.named_parameters()}
    jacobian = jacrev(lambda p: functional_call(model, p, (x,)))(at)
    flat = torch.cat([jacobian[name].flatten(2) for name in at], dim=2)
    theta = torch.cat([p.flatten() for p in at.values()])
    slope = torch.einsum("nkp,nk->p", flat, model(x).detach() - y) / len(x) + l2 * theta
    g = torch.einsum("nkp,nkq->pq", flat, flat) / len(x)
    expected = -torch.linalg.solve(g + (damping + l2) * torch.eye(len(g)), slope)

    trainer = gncompile.compile(model, "mse", x, damping=damping, l2=l2, **options)
    stats = trainer.step(x, y)
    found = torch.cat([(p.detach() - at[n]).flatten() for n, p in model.named_parameters()])
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-11), (found - expected).abs().max()
    assert stats.step_size == pytest.approx(1.0, rel=1e-9)


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_the_padding_row_moves_no_output(backend: str) -> None:
    """J v as of torch's J, which has no column for the padding's row."""
    torch.manual_seed(0)
    model, x = TiedToTable().double(), torch.randint(5, (9, 2))
    v = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    at = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = jacrev(lambda p: functional_call(model, p, (x,)))(at)
    expected = sum((jacobian[n].flatten(2) @ v[n].flatten() for n in v), torch.zeros(9, 5))
    found = gncompile.compile(model, "mse", x, backend=backend).rop(x, v)
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-12)
