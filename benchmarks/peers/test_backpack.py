"""Curvature by value at N > 1, on chains, against BackPACK 1.7.1; gradients against autograd.

BackPACK keeps ``[Ḡ, E[a aᵀ]]`` for a weight and ``[Ḡ]`` for its bias, where ours has one ``Q = E[ā āᵀ]`` with
the homogeneous coordinate last. Both divide by N and scale the loss's Hessian as torch scales the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from backpack import backpack, extend
from backpack.extensions import KFLR, KFRA
from torch import Tensor, nn

import gncompile
from benchmarks.compare import affine_layers, relative_error, weight_gradient
from benchmarks.compiled import Compiled

# Both sides round a few hundred operations in float64, near 1e-14; a wrong factor shows at 1e-2.
EXACT = 1e-9
ROUNDING = 1e-12

CHAINS = [(3, 5, 2), (7, 13, 5, 3), (5, 1, 9, 11, 4), (17, 33, 3)]
EXTENSIONS = {"kfra": KFRA, "kflr": KFLR}

# The batch itself needs no gradient, so BackPACK's hooks fire at the outputs, as it wants them to.
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """BackPACK builds the squared error's Hessian in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def chain(widths: tuple[int, ...], transfer: type[nn.Module], bias: bool = True) -> nn.Sequential:
    """Affine layers with a transfer function between them."""
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        modules += [nn.Linear(inputs, outputs, bias=bias), transfer()]
    return nn.Sequential(*modules[:-1])


def batch_for(loss: nn.Module, widths: tuple[int, ...], batch: int) -> tuple[Tensor, Tensor]:
    """Random inputs, and targets as ``loss`` takes them."""
    x = torch.randn(batch, widths[0])
    if isinstance(loss, nn.CrossEntropyLoss):
        return x, torch.randint(widths[-1], (batch,))
    return x, torch.randn(batch, widths[-1])


def assert_agrees(model: nn.Sequential, loss: nn.Module, x: Tensor, y: Tensor, method: str) -> None:
    """Every layer's factors equal BackPACK's."""
    ours = gncompile.curvature(model, loss, x, y, method=method)
    extended = extend(model)
    with backpack(EXTENSIONS[method]()):
        extend(loss)(extended(x), y).backward()
    affine = affine_layers(model)
    assert sorted(ours) == sorted(affine)
    for name, module in affine.items():
        g, q = getattr(module.weight, method)
        assert relative_error(ours[name].output, g) <= EXACT, f"output factor of {name!r}"
        features = module.in_features
        assert relative_error(ours[name].input[:features, :features], q) <= EXACT, f"Q of {name!r}"
        if module.bias is not None:
            (g_bias,) = getattr(module.bias, method)
            assert relative_error(ours[name].output, g_bias) <= EXACT, f"bias factor of {name!r}"
            mean = torch.cat([model[: int(name)](x).mean(0), torch.ones(1)])
            assert relative_error(ours[name].input[-1], mean) <= EXACT, f"last row of Q of {name!r}"


@pytest.mark.parametrize("method", EXTENSIONS)
@pytest.mark.parametrize("batch", [1, 7, 33])
@pytest.mark.parametrize("transfer", [nn.Tanh, nn.Sigmoid, nn.ReLU])
@pytest.mark.parametrize("loss", [nn.MSELoss, nn.CrossEntropyLoss])
@pytest.mark.parametrize("widths", CHAINS, ids=str)
def test_factors_equal_backpacks(
    widths: tuple[int, ...],
    loss: type[nn.Module],
    transfer: type[nn.Module],
    batch: int,
    method: str,
) -> None:
    torch.manual_seed(batch)
    criterion = loss()
    assert_agrees(chain(widths, transfer), criterion, *batch_for(criterion, widths, batch), method)


@pytest.mark.parametrize("method", EXTENSIONS)
@pytest.mark.parametrize("loss", [nn.MSELoss, nn.CrossEntropyLoss])
def test_summed_losses_and_layers_without_bias(loss: type[nn.Module], method: str) -> None:
    torch.manual_seed(0)
    widths = (6, 9, 7, 5)
    criterion = loss(reduction="sum")
    model = chain(widths, nn.Tanh, bias=False)
    assert_agrees(model, criterion, *batch_for(criterion, widths, 11), method)


@pytest.mark.parametrize("batch", [1, 7, 33])
@pytest.mark.parametrize("transfer", [nn.Tanh, nn.Sigmoid, nn.ReLU])
@pytest.mark.parametrize("loss", [nn.MSELoss, nn.CrossEntropyLoss])
@pytest.mark.parametrize("widths", CHAINS, ids=str)
def test_gradients_equal_autograd(
    widths: tuple[int, ...], loss: type[nn.Module], transfer: type[nn.Module], batch: int
) -> None:
    torch.manual_seed(batch)
    criterion, model = loss(), chain(widths, transfer)
    x, y = batch_for(criterion, widths, batch)
    compiled = Compiled(model, criterion, x, y)
    compiled.run("gradient")
    criterion(model(x), y).backward()
    for name, gradient in compiled.gradients().items():
        expected = weight_gradient(affine_layers(model)[name])
        assert relative_error(gradient, expected) <= ROUNDING, f"gradient of {name!r}"
