"""Constant nodes and zero slopes: right where a part is dead, refused by name where a layer is."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.app.api import understand
from gncompile.errors import CompileError, TraceError
from gncompile.pipeline import factor_program
from gncompile.program.program_check import check

BOTH = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """``b(f(a(x))) + c(x)``: the layer a lies behind f, the others do not."""

    def __init__(self, f: BOTH, width: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(width, 2), nn.Linear(4, 2)
        self.f = f
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.f(self.a(x))) + self.c(x)


def dead(model: nn.Module, x: Tensor, y: Tensor) -> bool:
    """Whether autograd gives the layer a no gradient, or zero everywhere."""
    loss = ((model(x) - y) ** 2).sum()
    gradient = torch.autograd.grad(loss, model.a.weight, allow_unused=True)[0]  # type: ignore[union-attr]
    return gradient is None or not gradient.any()


DEAD: dict[str, BOTH] = {
    "sign": torch.sign,
    "zero": lambda h: h * 0,
    "difference": lambda h: h - h,
    "equal branches": lambda h: torch.where(h > 0, torch.ones_like(h), torch.ones_like(h)),
    "step": lambda h: (h > 0).double(),
    "steps of steps": lambda h: torch.tanh(torch.sign(h) + 2 * (h > 1).double()),
    "cancelled": lambda h: (h + 1) - h,
    "absorbed": lambda h: h * 0 + torch.ones_like(h),
    "both halves": lambda h: torch.cat([0 * h[:, :3], torch.sign(h[:, 3:])], 1),
}

PARTLY: dict[str, BOTH] = {
    "half": lambda h: torch.cat([h[:, :3], 0 * h[:, 3:]], 1),
    "half of ones": lambda h: torch.cat([torch.tanh(h[:, :3]), torch.ones_like(h[:, 3:])], 1),
    "nothing added": lambda h: h + 0 * h[:, :1],
    "a sign times its input": lambda h: torch.sign(h) * h,
    "a gate of steps": lambda h: (h > 0).double() * h,
    "a sign of one, the rest of another": lambda h: torch.sign(h[:, :1]) + torch.sin(h),
    "a constant times a slope": lambda h: (h - h + 2) * torch.sigmoid(h),
    "kept apart": lambda h: torch.sign(h)[:, [0, 0, 1, 1, 2, 2]] + h,
}


def compare(model: nn.Module, x: Tensor, y: Tensor, method: str = "kfra") -> None:
    trainer = gncompile.compile(model, "mse", x, method=method)
    loss = ((model(x) - y) ** 2).sum() / 2 / len(x)
    names = [name for name, _ in model.named_parameters()]
    expected = torch.autograd.grad(loss, list(model.parameters()))
    found = trainer.gradients(x, y)
    for name, wanted in zip(names, expected, strict=True):
        assert float((found[name] - wanted).abs().max()) < 1e-12, name
    before = float(loss.detach())
    for _ in range(3):
        trainer.step(x, y)
    with torch.no_grad():
        assert float(((model(x) - y) ** 2).sum() / 2 / len(x)) < before


@pytest.mark.parametrize("name", PARTLY)
def test_a_part_without_slope_is_left_out(name: str) -> None:
    x, y = torch.randn(9, 4).double(), torch.randn(9, 2).double()
    compare(Net(PARTLY[name]), x, y, "kflr" if "sign" in name else "kfra")


@pytest.mark.parametrize("name", DEAD)
def test_a_layer_without_slope_is_refused_by_name(name: str) -> None:
    x, y = torch.randn(9, 4).double(), torch.randn(9, 2).double()
    model = Net(DEAD[name])
    assert dead(model, x, y)
    with pytest.raises(
        CompileError, match=r"a\.weight, a\.bias get no gradient: .*slope"
    ) as refusal:
        gncompile.compile(model, "mse", x)
    text = str(refusal.value)
    assert "test_zero_slopes.py" in text
    assert "requires_grad_(False)" in text


@pytest.mark.parametrize("name", DEAD)
def test_frozen_the_layer_is_no_obstacle(name: str) -> None:
    x, y = torch.randn(9, 4).double(), torch.randn(9, 2).double()
    model = Net(DEAD[name])
    model.a.requires_grad_(False)
    trainer = gncompile.compile(model, "mse", x)
    loss = ((model(x) - y) ** 2).sum() / 2 / len(x)
    (wanted,) = torch.autograd.grad(loss, model.b.weight)
    assert float((trainer.gradients(x, y)["b.weight"] - wanted).abs().max()) < 1e-12
    trainer.step(x, y)


def test_exact_blocks_beside_a_dead_part() -> None:
    """Gauss-Newton blocks of one sample against autograd's Jacobian."""
    x, y = torch.randn(1, 4).double(), torch.randn(1, 2).double()
    model = Net(PARTLY["half"])
    for method in ("kfra", "kflr", "ggn"):
        found = gncompile.curvature(model, "mse", x, y, method=method)["a"].output
        h = model.a(x)
        jacobian = torch.autograd.functional.jacobian(lambda h: model.b(model.f(h)), h)[0, :, 0]
        assert float((found - jacobian.T @ jacobian).abs().max()) < 1e-12


UNARY = ("torch.tanh({})", "torch.sin({})", "torch.sign({})", "({}) * 0", "F.relu({})", "({}) ** 2")
BINARY = (
    *("({}) + ({})", "({}) - ({})", "({}) * ({})", "torch.cat([({})[:, :3], ({})[:, 3:]], 1)"),
    *("torch.where({} > 0.3, {}, 0.5)", "({} > 0.1).double() * {}", "({}) + 0 * ({})[:, :1]"),
)
LEAVES = ("h", "h", "x6", "torch.ones_like(h)", "0 * h", "(h - h)", "(h > 0).double()")


def expression(generator: random.Random, depth: int) -> str:
    if depth == 0:
        return generator.choice(LEAVES)
    if generator.random() < 0.5:
        return generator.choice(UNARY).format(expression(generator, depth - 1))
    parts = (expression(generator, depth - 1), expression(generator, depth - 1))
    return generator.choice(BINARY).format(*parts)


class Random(Net):
    """A random expression of the layer's output and of some inputs, as torch code."""

    def __init__(self, text: str) -> None:
        code = eval(f"lambda h, x6: {text}", {"torch": torch, "F": nn.functional})
        super().__init__(code)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.f(self.a(x), x[:, [0, 1, 2, 3, 0, 1]])) + self.c(x)  # type: ignore[call-arg]


def test_random_expressions_with_constants_are_derived() -> None:
    """All are traced and derived, each fourth compiled; a refusal is right if autograd has no gradient."""
    generator = random.Random(3)
    x, y = torch.randn(64, 4).double(), torch.randn(64, 2).double()
    refused = taken = 0
    for number in range(40):
        torch.manual_seed(number)
        model = Random(expression(generator, 3))
        try:
            traced, loss = understand(model, "mse", x)[:2]
            program = factor_program(traced.graph, loss, "kfra")
        except (CompileError, TraceError):  # the latter where h does not occur at all
            assert dead(model, x, y)
            refused += 1
            continue
        check(program)
        taken += 1
        if taken % 4 == 0 and not dead(model, x, y):
            compare(model, x, y)
    assert refused > 5
    assert taken > 10


def test_a_slope_whose_square_is_no_float_is_none() -> None:
    """Curvatures hold the square of a constant slope; nothing is compiled from a zero there."""
    with pytest.raises(CompileError, match="a.weight, a.bias get no gradient"):
        understand(Net(lambda h: h * 1e-200), "mse", torch.zeros(3, 4, dtype=torch.float64))
    understand(Net(lambda h: h * 1e-100), "mse", torch.zeros(3, 4, dtype=torch.float64))
