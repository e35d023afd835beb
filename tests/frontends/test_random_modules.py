"""Random modules of the frontend's operators against autograd: value, gradient and tangent, in float64.

Unlike the networks of ``architectures.py``, which are compositions of layers, these are programs: every
step applies a random operator to tensors of any shape made before.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn import functional

import gncompile

Step = Callable[["Program", Tensor], Tensor]

POINTWISE: dict[str, Step] = {
    "tanh": lambda p, h: torch.tanh(h),
    "gelu": lambda p, h: functional.gelu(h),
    "silu": lambda p, h: functional.silu(h) - 0.5,
    "softplus": lambda p, h: functional.softplus(h, beta=2.0),
    "rational": lambda p, h: h / (1 + h.abs()),
    "root": lambda p, h: torch.sqrt(h * h + 0.5),
    "power": lambda p, h: h * (1 + h**2) ** -0.25,
    "leaky": lambda p, h: functional.leaky_relu(h, 0.3),
    "hardtanh": lambda p, h: functional.hardtanh(h, -0.83, 1.27),
    "where": lambda p, h: torch.where(h > 0.1, h, torch.sin(h)),
    "masked": lambda p, h: h.masked_fill(h < -0.5, -0.5),
    "mask as number": lambda p, h: h * (h > -0.2).to(h.dtype) + 0.1 * h,
    "clamp": lambda p, h: h.clamp(min=-0.7) + 0.1 * h,
    "extremum": lambda p, h: torch.maximum(h, 0.3 - h),
    "in place": lambda p, h: (1.5 * h).add_(0.25).mul_(0.5),
    "addcmul": lambda p, h: torch.addcmul(h, h, h.cos(), value=0.3),
    "lerp": lambda p, h: torch.lerp(h, h.sin(), 0.7),
    "flag": lambda p, h: h * True + False,
}

CONSTANTS: dict[str, Step] = {
    "buffer": lambda p, h: h * p.scale + p.shift,
    "whole numbers": lambda p, h: h * p.whole / 2,
    "mask buffer": lambda p, h: torch.where(p.mask, h, -h),
    "ones of the batch": lambda p, h: h + 0.5 * torch.ones(h.shape[0], 1, dtype=h.dtype),
    "expanded": lambda p, h: h * p.scale.expand(h.shape[0], 1),
    "mean of ones": lambda p, h: h / (1 + torch.ones_like(h).mean()),
    "computed": lambda p, h: h + torch.arange(h.shape[-1], dtype=h.dtype).sin(),
    "frozen": lambda p, h: h * p.fixed.bias[0].exp(),
}

MOVES: dict[str, Step] = {
    "flip": lambda p, h: h.flip(1) + 0.5 * h,
    "roll": lambda p, h: h.roll(2, dims=1) - 0.5 * h,
    "halves": lambda p, h: torch.cat(h.tensor_split(2, dim=1)[::-1], dim=1),
    "every second": lambda p, h: torch.cat([h[:, ::2], h[:, 1::2].sin()], dim=1),
    "index": lambda p, h: h[:, [-1, 0, 0]],
    "matrix": lambda p, h: torch.stack([h, h.cos()], dim=2).transpose(1, 2).flatten(1),
    "rows": lambda p, h: (
        torch.cat([h, h], 1).view(h.shape[0], 2, -1).permute(0, 2, 1).reshape(len_of(h), -1)
    ),
    "pad": lambda p, h: functional.pad(h, (1, 2), value=0.5)[:, 1:-1],
    "repeat": lambda p, h: h.repeat(1, 2) * torch.cat([h, h.tanh()], 1),
    "narrow": lambda p, h: h.narrow(1, 0, max(1, h.shape[1] // 2)),
    "joined constant": lambda p, h: torch.cat([h, p.shift.expand(h.shape[0], 1)], dim=1),
    "joined whole numbers": lambda p, h: torch.cat([h, torch.full((h.shape[0], 1), -1)], dim=1),
}

LINEAR: dict[str, Step] = {
    "sum": lambda p, h: h + h.sum(1, keepdim=True) / h.shape[1],
    "mean": lambda p, h: h - h.mean(-1, keepdim=True),
    "cumsum": lambda p, h: h.cumsum(1) / h.shape[1],
    "pool": lambda p, h: functional.avg_pool1d(torch.cat([h, h.sin()], 1)[:, None], 2)[:, 0],
    "einsum": lambda p, h: torch.einsum("ni,i->ni", h, torch.ones(h.shape[1], dtype=h.dtype)),
    "bmm": lambda p, h: (
        torch.bmm(h[:, None], torch.ones(h.shape[0], h.shape[1], 2, dtype=h.dtype))[:, 0] / 2
    ),
    "triangle": lambda p, h: torch.stack([h, h + 1], 1).tril().sum(1),
}

STEPS = POINTWISE | CONSTANTS | MOVES | LINEAR


def len_of(h: Tensor) -> int:
    """The batch size as ``forward`` sees it."""
    return h.shape[0]


@dataclass(frozen=True)
class Recipe:
    """Which step, applied to which tensor so far; ``layer`` is a Linear instead, ``join`` a second tensor."""

    step: str
    source: int
    other: int = -1
    width: int = 0


class Program(nn.Module):
    """Runs its recipes in order and ends in a linear layer; two inputs, buffers, a frozen layer."""

    scale: Tensor
    shift: Tensor
    whole: Tensor
    mask: Tensor

    def __init__(self, recipes: list[Recipe], widths: tuple[int, int]) -> None:
        super().__init__()
        self.recipes = recipes
        self.register_buffer("scale", torch.tensor([1.3]))
        self.register_buffer("shift", torch.tensor([[-0.4]]))
        self.register_buffer("whole", torch.tensor([3]))
        self.register_buffer("mask", torch.tensor([True]))
        self.fixed = nn.Linear(widths[0], 3).requires_grad_(False)
        self.first = nn.Linear(sum(widths) + 3, 5)
        self.layers = nn.ModuleDict()
        with torch.no_grad():
            for i, (recipe, h) in enumerate(zip(recipes, self._widths(widths), strict=False)):
                if recipe.step == "layer":
                    self.layers[str(i)] = nn.Linear(h, recipe.width)
            self.head = nn.Linear(self._before_head(widths), 2)

    def _widths(self, widths: tuple[int, int]):  # type: ignore[no-untyped-def]
        """The width that each recipe reads, known once those before it have run."""
        for i in range(len(self.recipes)):
            values = self._run(*[torch.zeros(2, w) for w in widths], steps=i)
            yield values[self.recipes[i].source].shape[1]

    def _before_head(self, widths: tuple[int, int]) -> int:
        return self._joined(self._run(*[torch.zeros(2, w) for w in widths])).shape[1]

    def _run(self, a: Tensor, b: Tensor, steps: int | None = None) -> list[Tensor]:
        values = [self.first(torch.cat([a, b.sin(), self.fixed(a)], dim=1))]
        for i, recipe in enumerate(self.recipes[:steps]):
            h = values[recipe.source]
            if recipe.step == "layer":
                h = self.layers[str(i)](h)
            elif recipe.step in ("product", "sum of two"):
                k = values[recipe.other]
                size = min(h.shape[1], k.shape[1])
                h = (
                    h[:, :size] * k[:, :size].tanh()
                    if recipe.step == "product"
                    else h[:, :size] - 0.7 * k[:, :size]
                )
            else:
                h = STEPS[recipe.step](self, h)
            values.append(h[:, :12])
        return values

    def _joined(self, values: list[Tensor]) -> Tensor:
        return torch.cat([value[:, :6] for value in values], dim=1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self._joined(self._run(a, b)).tanh())


def program(seed: int) -> Program:
    """A random program; every kind of step comes up, and tensors are read more than once."""
    draw = random.Random(seed)
    recipes = []
    names = sorted(STEPS)
    # walk through all steps over the seeds, so that none is left to chance
    own = [names[(seed * STEPS_A_PROGRAM + i) % len(names)] for i in range(STEPS_A_PROGRAM)]
    draw.shuffle(own)
    for name in own:
        for step in (draw.choice(["layer", "product", "sum of two", ""]), name):
            if step:
                source, other = draw.randrange(len(recipes) + 1), draw.randrange(len(recipes) + 1)
                recipes.append(Recipe(step, source, other, draw.randint(1, 7)))
    torch.manual_seed(seed)
    return Program(recipes, (draw.randint(1, 4), draw.randint(1, 4))).double()


STEPS_A_PROGRAM = 9
PROGRAMS = 5


def test_programs_have_every_step() -> None:
    assert len(STEPS) <= STEPS_A_PROGRAM * PROGRAMS


@pytest.mark.parametrize("seed", range(PROGRAMS))
def test_random_program(seed: int) -> None:
    module = program(seed)
    generator = torch.Generator().manual_seed(seed)

    def batch(samples: int) -> tuple[Tensor, ...]:
        widths = (module.fixed.in_features, module.first.in_features - module.fixed.in_features - 3)
        return tuple(
            torch.randn(samples, w, generator=generator, dtype=torch.float64) for w in widths
        )

    trainer = gncompile.compile(module, "mse", batch(3), method="sgd", tune="off")
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for samples in (1, 2, 7):
        x, y = batch(samples), torch.randn(samples, 2, generator=generator, dtype=torch.float64)
        z = module(*x)
        assert_close(trainer.predict(x), z, 1e-11, f"value, {module.recipes}")
        loss = 0.5 * (z - y).square().sum() / samples
        expected = torch.autograd.grad(loss, list(trained.values()))
        found = trainer.gradients(x, y)
        for name, gradient in zip(trained, expected, strict=True):
            assert_close(found[name], gradient, 1e-9, f"gradient of {name}, {module.recipes}")
    direction = {n: torch.randn(p.shape, generator=generator).double() for n, p in trained.items()}
    at = {name: p.detach() for name, p in trained.items()}
    tangent = jvp(lambda p: functional_call(module, p, x), (at,), (direction,))[1]
    assert_close(trainer.rop(x, direction), tangent, 1e-9, f"tangent, {module.recipes}")
