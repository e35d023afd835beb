"""Reductions written out in other operators: values and gradients are torch's, also where values tie."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn
from torch.nn import functional as F

import gncompile
from gncompile.errors import TraceError

N = 5


class Reduced(nn.Module):
    """A reduction over features between two layers, of values that may be equal."""

    def __init__(self, reduction: Callable[[Tensor], Tensor], ties: bool) -> None:
        super().__init__()
        self.enter, self.reduction, self.ties = nn.Linear(3, 8), reduction, ties
        width = reduction(torch.randn(1, 2, 4)).flatten(1).shape[1]
        self.leave = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        h = (h.clamp(0.1, 0.3) + h.clamp(0.1, 0.3)) if self.ties else h
        return self.leave(self.reduction(h.view(-1, 2, 4)).flatten(1))


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "amax": lambda h: h.amax(2),
    "amax of two dimensions": lambda h: h.amax((1, 2), keepdim=True),
    "amin": lambda h: h.amin(1),
    "max": lambda h: h.max(2)[0],
    "min": lambda h: h.min(1, keepdim=True).values,
    "logsumexp": lambda h: h.logsumexp(2),
    "logsumexp of two dimensions": lambda h: h.logsumexp((1, 2), keepdim=True),
    "var": lambda h: h.var(2),
    "var with correction": lambda h: h.var((1, 2), correction=0, keepdim=True),
    "std": lambda h: (h + torch.arange(4)).std(2),
    "var_mean": lambda h: torch.cat([h.var(1, unbiased=False), h.mean(1)], 1),
    "prod": lambda h: h.prod(2),
    "fold": lambda h: F.fold(h.repeat(1, 2, 1), (3, 3), (2, 2)),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_gradient(name: str) -> None:
    torch.manual_seed(1)
    model = Reduced(REDUCTIONS[name], ties=name.startswith("amax")).double()
    x, y = torch.randn(N, 3).double(), torch.randn(N, 2).double()
    trainer = gncompile.compile(model, "mse", x, "sgd", backend="reference")
    loss = 0.5 * (model(x) - y).square().sum() / N
    expected = torch.autograd.grad(loss, list(model.parameters()))
    assert_close(trainer.loss(x, y), loss.detach(), 1e-12, "loss")
    found = trainer.gradients(x, y)
    for (path, _), gradient in zip(model.named_parameters(), expected, strict=True):
        assert_close(found[path], gradient, 1e-11, path)


def test_bilinear_is_a_layer_of_products() -> None:
    torch.manual_seed(1)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.pair = nn.Linear(3, 4), nn.Bilinear(4, 3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.pair(torch.tanh(self.enter(x)), x)

    model, x = Pair().double(), torch.randn(N, 3).double()
    trainer = gncompile.compile(model, "mse", x, tune="off")
    assert trainer.compiled.traced.graph.layers["pair"].shape == (2, 4 * 3 + 1)
    assert not trainer.compiled.traced.graph.first_order
    assert gncompile.verify(model, "mse", x).ok
    for _ in range(3):
        trainer.step(x, torch.randn(N, 2).double())


def test_places_of_a_maximum_have_no_rule() -> None:
    class Places(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = nn.Linear(3, 8)

        def forward(self, x: Tensor) -> Tensor:
            h, places = self.enter(x).max(1)
            return (h + places)[:, None]

    with pytest.raises(TraceError, match="argmax cannot be compiled"):
        gncompile.compile(Places(), "mse", torch.randn(N, 3))
