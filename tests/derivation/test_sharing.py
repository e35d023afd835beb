"""One pair of factors for many places, against all pairs of places by torch.func, in float64.

The oracle shifts the output of every product with the weight in question and sees its input: from the
Jacobians and these come the blocks ``M[s, t]`` and ``X[s, t]`` between all places, and what each mode makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import gncompile
from gncompile.errors import CompileError

MODES = ("expand", "reduce", "nearest")


class Recurrence(nn.Module):
    """One layer called at every step, the last time without its bias; the other at several places at once."""

    def __init__(self, d: int = 3, k: int = 2) -> None:
        super().__init__()
        self.enter, self.again, self.out = nn.Linear(2, d), nn.Linear(d, d), nn.Linear(d, k)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        h = torch.tanh(entered[:, 0])
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.again(h) + entered[:, t])
        return self.out(h) + self.out(torch.sin(F.linear(h, self.again.weight)))


class Tokens(nn.Module):
    """Two layers at every position, mixed by position."""

    def __init__(self, linear: bool = False, pooled: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)
        self.linear, self.pooled = linear, pooled

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(self.a(x) if self.linear else torch.tanh(self.a(x)))
        return h.sum(dim=1) if self.pooled else h


class Tied(nn.Module):
    """An encoder and its transpose, the encoder at two places and the decoder at one."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.shift = nn.Linear(5, 3), nn.Parameter(0.1 * torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.tanh(self.encoder(x)).sum(dim=1)
        return F.linear(code, self.encoder.weight.t(), self.shift)


NETS: Mapping[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "recurrence": (Recurrence, "again", (4, 2)),
    "recurrence's input": (Recurrence, "enter", (4, 2)),
    "tokens": (Tokens, "a", (3, 3)),
    "one token": (Tokens, "a", (1, 3)),
    "last layer": (Tokens, "b", (3, 3)),
}


class Products(TorchFunctionMode):
    """Sees every ``F.linear`` with a weight, or with its transpose, and shifts what it yields."""

    def __init__(self, weight: Tensor, transposed: bool, shifts: Tensor | None = None) -> None:
        super().__init__()
        self.weight, self.transposed, self.shifts = weight, transposed, shifts
        self.rows: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        y = func(*args, **(kwargs or {}))
        if func is not F.linear or args[1].data_ptr() != self.weight.data_ptr():
            return y
        if (args[1].shape != self.weight.shape) != self.transposed:
            return y
        x = args[0].reshape(len(args[0]), -1, args[0].shape[-1])
        bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
        coordinate = x.new_full((*x.shape[:2], 1), float(bias is not None))
        done = sum(row.shape[1] for row in self.rows)
        self.rows.append(torch.cat([x, coordinate], dim=-1).detach())
        if self.shifts is None:
            return y
        return y + self.shifts[:, done : done + x.shape[1]].reshape(y.shape)


def pairs(
    model: nn.Module, layer: str, x: Tensor, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """``M[s, t]``: [S, S, d, d] and ``X[s, t]``: [S, S, c, c] of squared error, ``½ ‖z − y‖²`` a sample."""
    weight = model.get_submodule(layer).weight
    with Products(weight, transposed) as seen:
        model(x)
    rows = torch.cat(seen.rows, dim=1)
    size = weight.shape[1] if transposed else weight.shape[0]

    def moved(shifts: Tensor) -> Tensor:
        with Products(weight, transposed, shifts):
            return model(x).flatten(1).sum(dim=0)

    jacobian = jacrev(moved)(x.new_zeros(len(x), rows.shape[1], size)).detach()  # [K, N, S, d]
    return (
        torch.einsum("knsi,kntj->stij", jacobian, jacobian) / len(x),
        torch.einsum("nsi,ntj->stij", rows, rows) / len(x),
    )


def summed(m: Tensor, x: Tensor) -> Tensor:
    """``Σ_st M[s, t] ⊗ X[s, t]``."""
    d, c = m.shape[-1], x.shape[-1]
    return torch.einsum("stij,stab->iajb", m, x).reshape(d * c, d * c)


def of_mode(mode: str, m: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Q and Ḡ of *expand* and *reduce*."""
    places = len(m)
    if mode == "expand":
        return torch.einsum("ssab->ab", x), torch.einsum("ssij->ij", m) / places
    return x.sum(dim=(0, 1)) / places**2, m.sum(dim=(0, 1))


def best(m: Tensor, x: Tensor) -> float:
    """The least distance of any product to the sum: the singular values beyond the first."""
    d, c = m.shape[-1], x.shape[-1]
    rearranged = torch.einsum("stij,stab->ijab", m, x).reshape(d * d, c * c)
    return float(torch.linalg.svdvals(rearranged)[1:].square().sum().sqrt())


def problem(net: str, samples: int) -> tuple[nn.Module, str, Tensor, Tensor]:
    torch.manual_seed(0)
    kind, layer, shape = NETS[net]
    model = kind().double()
    x = torch.randn(samples, *shape, dtype=torch.float64)
    return model, layer, x, torch.randn_like(model(x))


def factors_of(model: nn.Module, x: Tensor, y: Tensor, **options: Any) -> dict[str, Any]:
    """Factors for half the sum of squares, which the oracle has."""
    return gncompile.curvature(model, "mse", x, y, **options)


@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("method", "samples"), [("kflr", 5), ("ggn", 5), ("kfra", 1)])
def test_factors_are_those_of_all_pairs(
    method: str, samples: int, mode: str, net: str, backend: str
) -> None:
    model, layer, x, y = problem(net, samples)
    found = factors_of(model, x, y, method=method, sharing=mode, backend=backend)[layer]
    m, moments = pairs(model, layer, x)
    if mode == "nearest":
        distance = float((found.dense() - summed(m, moments)).norm())
        optimum, scale = best(m, moments), float(summed(m, moments).norm())
        assert optimum - 1e-12 * scale <= distance <= optimum + 0.02 * scale
    else:
        q, g = of_mode(mode, m, moments)
        torch.testing.assert_close(found.input, q, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(found.output, g, rtol=1e-10, atol=1e-12)
