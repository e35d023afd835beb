"""No sample's output depends on the batch around it: such modules are compiled right, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn
from torch.nn import functional

import gncompile
from gncompile.errors import TraceError
from gncompile.frontends import trace

Function = Callable[["Module", Tensor, Tensor], Tensor]


class Module(nn.Module):
    """A function of the input, and of the features of one layer."""

    table: Tensor
    equal: Tensor
    v: Tensor
    mask: Tensor
    index: Tensor
    whole: Tensor
    matrix: Tensor

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.function = function
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("table", torch.randn(300, 4, generator=generator))
        self.register_buffer("equal", torch.ones(300, 4))
        self.register_buffer("v", torch.randn(4, generator=generator))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("index", torch.tensor([1, 3, 0]))
        self.register_buffer("whole", torch.tensor([2, -1, 3, 5]))
        self.register_buffer("matrix", torch.randn(2, 5, generator=generator))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x, self.fc(x))


def numbers(x: Tensor) -> Tensor:
    """The number of each sample in the batch."""
    return torch.arange(x.shape[0])


def ones(x: Tensor) -> Tensor:
    return torch.ones_like(x)


ALIKE: dict[str, Function] = {
    "ones, mean": lambda m, x, h: h / (ones(x).mean(0) + ones(x).mean()),
    "ones, cumsum over features": lambda m, x, h: h * ones(x).cumsum(1),
    "as features": lambda m, x, h: h + 2 * torch.ones(4, len_(x)).t(),
    "zeros and full": lambda m, x, h: h + torch.zeros(len_(x), 1) + torch.full((len_(x), 4), 0.5),
    "empty, filled": lambda m, x, h: h + h.new_empty(len_(x), 4).fill_(2.0),
    "repeat": lambda m, x, h: h * m.v.repeat(len_(x), 1),
    "expand": lambda m, x, h: h * m.v.expand(len_(x), -1) + m.v[None].expand_as(h),
    "type_as": lambda m, x, h: h * m.whole.type_as(h),
    "cat": lambda m, x, h: torch.cat([h, m.v.expand(len_(x), 4), torch.ones(len_(x), 1)], 1),
    "cat of whole numbers": lambda m, x, h: torch.cat([h, torch.full((len_(x), 1), -1)], 1),
    "cat of a whole buffer": lambda m, x, h: torch.cat([h, m.whole.expand(len_(x), -1)], 1),
    "cat of masks": lambda m, x, h: torch.cat([h, m.mask.expand(len_(x), -1), h > 0], 1),
    "stack": lambda m, x, h: torch.stack([h, m.v.expand(len_(x), -1)], 1).flatten(1),
    "bmm": lambda m, x, h: torch.bmm(
        h.view(-1, 2, 2), m.matrix.expand(len_(x), 2, 5)
    ).flatten(1),
    "baddbmm": lambda m, x, h: torch.baddbmm(
        m.matrix.expand(len_(x), 2, 5), h.view(-1, 2, 2), m.matrix.expand(len_(x), 2, 5), alpha=0.5
    ).flatten(1),
    "einsum": lambda m, x, h: torch.einsum("ni,ni->ni", h, 3 * ones(x)),
    "index": lambda m, x, h: h[:, m.index],
    "bool scalars": lambda m, x, h: h * True + False,
    "bool and whole buffers": lambda m, x, h: torch.where(m.mask, h * m.mask, h / m.whole),
    "mask into a layer": lambda m, x, h: functional.linear((h > 0).double() + h, m.matrix[:, :4]),
    "mask counted": lambda m, x, h: h * (h > 0).to(h.dtype).sum(1, keepdim=True),
    "squeeze": lambda m, x, h: h.view(-1, 1, 4).squeeze(1) * m.v,
    "other dtypes": lambda m, x, h: h * torch.tensor(0.3) + m.v.float() * m.v.half(),
}  # fmt: skip


def len_(x: Tensor) -> int:
    """The batch size, a symbol while the module is traced."""
    return x.shape[0]


# every sample's batch size, samples with their numbers, and what only shows from some size on
VARYING: dict[str, tuple[Function, str]] = {
    "arange": (lambda m, x, h: h * numbers(x)[:, None], "arange depends on the number of samples"),
    "arange, late": (lambda m, x, h: h * (numbers(x) > 100)[:, None], "arange depends"),
    "arange, coarse": (lambda m, x, h: h + (numbers(x) // 100)[:, None], "arange depends"),
    "alternating": (lambda m, x, h: h * torch.pow(-1.0, numbers(x))[:, None], "arange depends"),
    "cat": (lambda m, x, h: torch.cat([h, numbers(x).to(h.dtype)[:, None]], 1), "arange depends"),
    "table": (lambda m, x, h: h + m.table[numbers(x)], "arange depends"),
    "head of a table": (lambda m, x, h: h + m.table[: len_(x)], "fixes the batch size"),
    "last of a table": (lambda m, x, h: h + m.table[len_(x) - 1], "fixes the batch size"),
    "equal rows": (lambda m, x, h: h + m.equal[: len_(x)], "fixes the batch size"),
    "column a sample": (lambda m, x, h: h[numbers(x), 2][:, None], "arange depends"),
    "full": (lambda m, x, h: h * torch.full((1,), len_(x)), "full depends on the number"),
    "full, coarse": (lambda m, x, h: h + torch.full((1,), len_(x) // 100), "full depends"),
    "full, root": (lambda m, x, h: h + torch.full((1,), len_(x) ** 0.5), "full depends"),
    "tensor": (lambda m, x, h: h * torch.tensor(len_(x) % 2), "depends on the number of samples"),
    "sum": (lambda m, x, h: h / ones(x[:, 0]).sum(), "sum depends on the number of samples"),
    "cumsum": (lambda m, x, h: h * ones(x).cumsum(0), "cumsum depends on a sample's position"),
    "cumsum, late": (lambda m, x, h: h * (ones(x).cumsum(0) > 9), "a sample's position"),
    "eye": (lambda m, x, h: h * torch.eye(len_(x), dtype=h.dtype)[:, :1], "depends on"),
    "eye, summed": (lambda m, x, h: h * torch.eye(len_(x)).double().sum(1, True), "depends on"),
    "triangle": (lambda m, x, h: h * ones(x).tril(-9), "a sample's position in the batch"),
    "division": (lambda m, x, h: h / len_(x), "div computes with the batch size"),
    "root": (lambda m, x, h: h * len_(x) ** 0.5, "mul computes with the batch size"),
    "parity": (lambda m, x, h: h * (len_(x) % 2), "mul computes with the batch size"),
    "numel": (lambda m, x, h: h / h.numel(), "div computes with the batch size"),
    "column": (lambda m, x, h: h[:, len_(x) % 4][:, None], "select computes with the batch size"),
    "turn": (lambda m, x, h: h.roll(len_(x), 1), "roll computes with the batch size"),
    "branch": (lambda m, x, h: h if len_(x) > 4 else -h, "fixes the batch size"),
    "branch for one": (lambda m, x, h: h if len_(x) == 1 else -h, "for a sample alone"),
    "deviation": (lambda m, x, h: h + ones(x).std(0), "depends on the number of samples"),
}

MIXING: dict[str, Function] = {
    "view": lambda m, x, h: h.view(-1, 2),
    "fold": lambda m, x, h: h.view(-1, 2, 2).flatten(0, 1),
    "transpose": lambda m, x, h: (h.t() * 2).t(),
    "flip": lambda m, x, h: h.flip(0),
    "roll": lambda m, x, h: h.roll(5, 0),
    "roll of all": lambda m, x, h: h.roll(20),
    "rot90": lambda m, x, h: h.rot90(2),
    "cumsum": lambda m, x, h: h.cumsum(0),
    "mean": lambda m, x, h: h - h.mean(0),
    "triangle": lambda m, x, h: h.tril(-9),
    "pad": lambda m, x, h: functional.pad(h, (0, 0, 1, -1)),
    "repeat": lambda m, x, h: h.repeat_interleave(2, 0).view(-1, 2, 4)[:, 0],
    "cat": lambda m, x, h: torch.cat([h, 2 * h], 0)[len_(x) :],
    "stack": lambda m, x, h: torch.stack([h, 2 * h], 0).sum(0),
    "product over the batch": lambda m, x, h: torch.einsum("ni,mi->ni", h, ones(x)),
    "batch as channels": lambda m, x, h: functional.avg_pool1d(h.view(1, -1, 4), 1)[0],
}

FIXING: dict[str, Function] = {
    "halves": lambda m, x, h: h.reshape(len_(x) // 2, -1),
    "chunks": lambda m, x, h: torch.cat(h.chunk(2, 0)[::-1], 0),
    "splits": lambda m, x, h: torch.cat(h.split(2, 0)[::-1], 0),
    "windows": lambda m, x, h: h.unfold(0, 2, 2).flatten(1),
    "columns": lambda m, x, h: h.t().reshape(len_(x), 4),
}


@pytest.mark.parametrize("function", ALIKE.values(), ids=ALIKE.keys())
def test_constants_alike_for_every_sample(function: Function) -> None:
    torch.manual_seed(0)
    module = Module(function)
    trainer = gncompile.compile(module, "mse", torch.ones(3, 4).double(), method="sgd", tune="off")
    for samples in (1, 2, 5, 7):
        x = torch.randn(samples, 4, dtype=torch.float64)
        z = module(x)
        assert_close(trainer.predict(x), z, 1e-12, "value")
        (expected,) = torch.autograd.grad(0.5 * z.square().sum() / samples, module.fc.weight)
        found = trainer.gradients(x, torch.zeros_like(z))["fc.weight"]
        assert_close(found, expected, 1e-9, "gradient")


@pytest.mark.parametrize(("function", "part"), VARYING.values(), ids=VARYING.keys())
def test_constants_of_the_batch(function: Function, part: str) -> None:
    with pytest.raises(TraceError, match=part) as caught:
        trace(Module(function), torch.ones(4, 4).double())
    assert "what to do: " in str(caught.value)
    if "depends" in part or "computes with" in part:
        assert "test_batch_size.py:" in str(caught.value)


@pytest.mark.parametrize("function", MIXING.values(), ids=MIXING.keys())
def test_samples_that_meet(function: Function) -> None:
    with pytest.raises(TraceError, match="mixes samples"):
        trace(Module(function), torch.ones(4, 4).double())


@pytest.mark.parametrize("function", FIXING.values(), ids=FIXING.keys())
def test_batch_cut_into_parts(function: Function) -> None:
    with pytest.raises(TraceError, match="fixes the batch size|mixes samples"):
        trace(Module(function), torch.ones(4, 4).double())


RANDOM: dict[str, tuple[Function, str]] = {
    "like a constant": (lambda m, x, h: h + torch.rand_like(m.v), "rand_like .* random numbers"),
    "of a buffer": (lambda m, x, h: h + torch.bernoulli(m.mask.double()), "bernoulli"),
    "dropout of a buffer": (lambda m, x, h: h + functional.dropout(m.v), "dropout in training"),
    "permutation": (lambda m, x, h: h[:, torch.randperm(4)], "randperm"),
    "Python's": (lambda m, x, h: h * random.random(), "something else at every call"),
}


@pytest.mark.parametrize(("function", "part"), RANDOM.values(), ids=RANDOM.keys())
def test_random_constants(function: Function, part: str) -> None:
    with pytest.raises(TraceError, match=part):
        trace(Module(function), torch.ones(4, 4).double())


def test_state_of_python() -> None:
    class Counter(Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.fc(x) * self.calls

    with pytest.raises(TraceError, match="something else at every call"):
        trace(Counter(lambda m, x, h: h), torch.ones(4, 4).double())


NOT_MASKS: dict[str, Function] = {
    "not": lambda m, x, h: h * torch.logical_not(h),
    "and": lambda m, x, h: h * torch.logical_and(h, h > 0),
    "complement": lambda m, x, h: h * ~((h > 0).int()),
}


@pytest.mark.parametrize("function", NOT_MASKS.values(), ids=NOT_MASKS.keys())
def test_logic_of_numbers(function: Function) -> None:
    with pytest.raises(TraceError, match=r"logical_\w+ of numbers"):
        trace(Module(function), torch.ones(4, 4).double())
