"""Weights computed of parameters, and the first-order rule of these, against autograd and by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import gncompile
from gncompile.derivation.first_order import EPSILON
from gncompile.errors import CompileError
from gncompile.training.trainer import Trainer

N = 12


class LowRank(nn.Module):
    """``W_0 + s B A`` with a frozen ``W_0`` and a trained scale."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.randn(3, 4), requires_grad=False)
        self.a, self.b = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(3, 2))
        self.scale, self.out = nn.Parameter(torch.tensor(0.7)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(x @ (self.frozen + self.scale * self.b @ self.a).T))


class InTwoRoles(nn.Module):
    """A parameter that is a layer's weight, elementwise, and by a softmax of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.bias, self.out = (
            nn.Parameter(torch.randn(4, 4)),
            nn.Parameter(torch.randn(4)),
            nn.Linear(4, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.w, self.bias))
        return self.out(h + self.w[0] * x + torch.softmax(self.w, 0).sum(1))


class Scaled(nn.Module):
    """A weight of many entries times a number."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.scale = nn.Parameter(torch.randn(70, 60) / 8), nn.Parameter(torch.tensor(1.3))
        self.into, self.out = nn.Linear(4, 60), nn.Linear(70, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(F.linear(self.into(x), self.w * self.scale)))


def normed(layer: nn.Module, *rest: nn.Module) -> nn.Sequential:
    return nn.Sequential(parametrizations.weight_norm(layer), nn.Tanh(), *rest)


def at_places() -> nn.Module:
    return normed(nn.Linear(4, 3), nn.Flatten(), nn.Linear(6, 2))


def convolution() -> nn.Module:
    return normed(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 2))


def transposed_convolution() -> nn.Module:
    return normed(nn.ConvTranspose1d(2, 3, 3, stride=2), nn.Flatten(), nn.Linear(21, 2))


def spectral() -> nn.Module:
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(4, 3)), nn.Tanh(), nn.Linear(3, 2)
    ).eval()


def alone() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(4, 2, bias=False))


SHAPES: dict[Callable[[], nn.Module], tuple[int, ...]] = {
    LowRank: (4,), InTwoRoles: (4,), Scaled: (4,), at_places: (2, 4), convolution: (2, 4, 4),
    transposed_convolution: (2, 3), spectral: (4,), alone: (4,),
}  # fmt: skip
SMALL = (LowRank, at_places, alone)


def problem(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = make().double()
    return model, torch.randn(N, *SHAPES[make]).double(), torch.randn(N, 2).double()


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained(model).items()}


def compiled(model: nn.Module, x: Tensor, **options: object) -> Trainer:
    return gncompile.compile(model, "mse", x, **{"tune": "off", **options})  # type: ignore[arg-type]


@cache
def untrained(make: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, Tensor, Trainer]:
    """A problem and its trainer, which no test steps."""
    model, x, y = problem(make)
    return model, x, y, compiled(model, x)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * (model(x) - y).square().sum() / len(x)


@pytest.mark.parametrize("make", SHAPES)
def test_gradient_and_tangent(make: Callable[[], nn.Module]) -> None:
    model, x, y, trainer = untrained(make)
    parameters = trained(model)
    found = trainer.gradients(x, y)
    expected = torch.autograd.grad(loss(model, x, y), list(parameters.values()))
    assert set(found) == set(parameters)
    for name, gradient in zip(parameters, expected, strict=True):
        assert_close(found[name], gradient, 1e-12, name)

    def outputs(*tensors: Tensor) -> Tensor:
        changed = dict(zip(parameters, tensors, strict=True))
        return torch.func.functional_call(model, changed, (x,))

    direction = {name: torch.randn_like(p) for name, p in parameters.items()}
    given = tuple(parameters.values()), tuple(direction.values())
    _, tangent = torch.autograd.functional.jvp(outputs, *given)  # weight_norm has no forward mode
    assert_close(trainer.rop(x, direction), tangent, 1e-12, "tangent")


@pytest.mark.parametrize("make", SHAPES)
def test_every_parameter_has_a_row_of_the_summary(make: Callable[[], nn.Module]) -> None:
    model, _, _, trainer = untrained(make)
    text, layers = trainer.summary(width=200), trainer.compiled.traced.graph.trained
    named = [name for layer in layers.values() for name in layer.parameters]
    assert sorted(named) == sorted(trained(model))
    assert f"{sum(p.numel() for p in trained(model).values()):,} trained parameters" in text
    for name in trainer.compiled.traced.graph.first_order:
        assert name in text
    assert "diagonal first-order" in text


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_step_sizes_are_those_of_the_model(backend: str) -> None:
    """The parts δ of the step with factors and of first order solve ``δᵢᵀ(∇ + (G + λI)(δ₁ + δ₂)) = 0``."""
    model, x, y = problem(LowRank)
    options = {"layer_steps": 0, "search_steps": 0, "quadratic_share": 1.0, "damping_period": 1000}
    trainer, parameters = compiled(model, x, backend=backend, **options), trained(model)
    before = values(model)
    gradient = dict(
        zip(
            parameters,
            torch.autograd.grad(loss(model, x, y), list(parameters.values())),
            strict=True,
        )
    )
    names = list(parameters)

    def outputs(*tensors: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), (x,))

    jacobians = torch.autograd.functional.jacobian(outputs, tuple(before.values()))
    j = torch.cat([each.reshape(N, 2, -1) for each in jacobians], dim=2)
    trainer.step(x, y)
    change = {name: p.detach() - before[name] for name, p in parameters.items()}
    first_order = {name: change[name] for name in ("a", "b", "scale")}
    ratio = torch.cat(
        [
            (d * (1 + EPSILON / gradient[n].abs()) / gradient[n].sign()).flatten()
            for n, d in first_order.items()
        ]
    )
    assert_close(
        ratio, ratio.mean().expand_as(ratio), 1e-9, "Δ is the sign of the gradient at first"
    )

    def flat(part: dict[str, Tensor]) -> Tensor:
        return torch.cat([part.get(n, torch.zeros_like(before[n])).flatten() for n in names])

    whole, slope = flat(change), flat(gradient)
    moved = torch.einsum("nkp,nkq,q->p", j, j, whole) / N + 0.1 * whole
    for part in (first_order, {n: d for n, d in change.items() if n not in first_order}):
        assert abs(float(flat(part) @ (slope + moved))) < 1e-9 * abs(float(flat(part) @ slope))


@pytest.mark.parametrize("make", SMALL)
def test_training_and_resuming(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, x, y = problem(make)
    y = copy.deepcopy(model)(x).detach() + 0.3 * torch.randn(N, 2)
    nn.init.normal_(next(iter(trained(model).values())))
    trainer = compiled(model, x)
    first = float(trainer.loss(x, y))
    for _ in range(20):
        trainer.step(x, y)
    assert float(trainer.loss(x, y)) < 0.5 * first
    trainer.save(tmp_path / "run.safetensors")
    other = Trainer.resume(tmp_path / "run.safetensors", copy.deepcopy(model), "mse")
    for _ in range(3):
        assert trainer.step(x, y).loss == other.step(x, y).loss


def test_an_update_is_undone_as_a_whole() -> None:
    model, x, y = problem(LowRank)
    trainer = compiled(model, x)
    trainer.step(x, y)
    before = values(model)
    trainer.step(x, y)
    assert all(not torch.equal(p, before[name]) for name, p in trained(model).items())
    trainer.settle(
        x, torch.full_like(y, 1e200)
    )  # a loss that is not finite: the update is the suspect
    for name, p in trained(model).items():
        assert torch.equal(p, before[name]), name


def test_a_guarded_program_refuses_a_step_as_a_whole() -> None:
    model, x, y = problem(LowRank)
    trainer = compiled(model, x, guarded=True)
    trainer.step(x, y)
    kept, squares = values(model), trainer.compiled.executable.memory.states["square.a"].clone()
    trainer.step(x, torch.full_like(y, 1e200))
    for name, p in trained(model).items():
        assert torch.equal(p, kept[name]), name
    assert torch.equal(trainer.compiled.executable.memory.states["square.a"], squares)


def test_strict_names_what_has_no_rule() -> None:
    model, x, _ = problem(LowRank)
    with pytest.raises(CompileError, match="no curvature rule covers the parameters a, b, scale"):
        compiled(model, x, strict=True)
    compiled(nn.Linear(4, 2).double(), x, strict=True)


def test_a_frozen_part_follows_the_model() -> None:
    """What is frozen of a computed weight stays the user's own tensor."""
    model, x, y, trainer = untrained(LowRank)
    assert isinstance(model, LowRank)
    for factor in (2.0, 0.5):
        model.frozen.mul_(factor)
        assert_close(trainer.loss(x, y), loss(model, x, y).detach(), 1e-12, "loss")


def test_verify() -> None:
    model, x, _ = problem(InTwoRoles)
    assert gncompile.verify(model, "mse", x).ok
