"""Hand-written networks with forks, each as a module and as a structure for the frontier.

The structure names a node after the linear layer whose output it is, so factors compare by name. A
pointwise region is composed down to the outputs of linear nodes, with one exception: a tensor that a
linear layer reads too stays a tensor of its own where it enters a sum. A slope of one hands an
averaged matrix on exactly; composed past it, the two paths would be averaged apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from architectures import normal
from frontier import INPUT, Lin, Part, Point
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

WIDTH = 4


def layer(generator: torch.Generator, inputs: int = WIDTH, outputs: int = WIDTH) -> nn.Linear:
    """A float64 affine layer with seeded weights of unit scale."""
    made = nn.Linear(inputs, outputs, dtype=torch.float64)
    with torch.no_grad():
        made.weight.copy_(1.5 * normal(generator, outputs, inputs) / math.sqrt(inputs))
        made.bias.copy_(0.3 * normal(generator, outputs))
    return made


class Handwritten(nn.Module):
    """A network that can also tell its structure."""

    def structure(self) -> list[Part]:
        """The nodes in topological order; the last one is the network output."""
        raise NotImplementedError

    def affine(self, name: str, source: str) -> Lin:
        """The structure's node of the linear layer ``name``."""
        module = self.get_submodule(name)
        assert isinstance(module, nn.Linear)
        return Lin(name, {source: module.weight.detach()}, module.bias.detach())


class Residual(Handwritten):
    """``z = W₃ tanh(h₁ + W₂ silu(h₁))``: a residual around a layer, from a linear output."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.first, self.second = layer(generator), layer(generator)
        self.third = layer(generator, outputs=3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        z: Tensor = self.third(torch.tanh(h + self.second(silu(h))))
        return z

    def structure(self) -> list[Part]:
        return [
            self.affine("first", INPUT),
            Point("inner", ("first",), silu),
            self.affine("second", "inner"),
            Point("outer", ("first", "second"), lambda h, r: torch.tanh(h + r)),
            self.affine("third", "outer"),
        ]


class GateIntoTwo(Handwritten):
    """A gate ``tanh(h_a) σ(h_b)`` read by two linear layers, whose outputs meet in a product."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.a, self.b = layer(generator), layer(generator)
        self.left, self.right = layer(generator, outputs=3), layer(generator, outputs=3)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.tanh(self.a(x)) * torch.sigmoid(self.b(x))
        z: Tensor = self.left(gate) * softplus(self.right(gate))
        return z

    def structure(self) -> list[Part]:
        return [
            self.affine("a", INPUT),
            self.affine("b", INPUT),
            Point("gate", ("a", "b"), lambda a, b: torch.tanh(a) * torch.sigmoid(b)),
            self.affine("left", "gate"),
            self.affine("right", "gate"),
            Point("z", ("left", "right"), lambda u, v: u * softplus(v)),
        ]


class ForkAndConcat(Handwritten):
    """One tensor read by three linear layers, concatenated, then two more layers."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.stem = layer(generator)
        self.p, self.q = layer(generator, outputs=3), layer(generator, outputs=2)
        self.r = layer(generator, outputs=1)
        self.mix = layer(generator, inputs=6)
        self.last = layer(generator, outputs=3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.stem(x))
        joined = torch.cat([torch.sin(self.p(a)), softplus(self.q(a)), self.r(a)], dim=-1)
        z: Tensor = self.last(torch.sigmoid(self.mix(joined)))
        return z

    def structure(self) -> list[Part]:
        p, q, r = torch.eye(6, dtype=torch.float64).split((3, 2, 1), dim=1)
        return [
            self.affine("stem", INPUT),
            Point("a", ("stem",), torch.tanh),
            self.affine("p", "a"),
            self.affine("q", "a"),
            self.affine("r", "a"),
            Point("sin_p", ("p",), torch.sin),
            Point("soft_q", ("q",), softplus),
            Lin("joined", {"sin_p": p, "soft_q": q, "r": r}),
            self.affine("mix", "joined"),
            Point("top", ("mix",), torch.sigmoid),
            self.affine("last", "top"),
        ]


class SlicedGate(Handwritten):
    """One layer's output cut into overlapping slices that meet again in a gate."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.wide = layer(generator, outputs=5)
        self.narrow = layer(generator, inputs=3)
        self.last = layer(generator, outputs=2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wide(x)
        gate = torch.tanh(h[:, :3]) * torch.sigmoid(h[:, 2:])
        z: Tensor = self.last(silu(self.narrow(gate)))
        return z

    def structure(self) -> list[Part]:
        eye = torch.eye(5, dtype=torch.float64)
        return [
            self.affine("wide", INPUT),
            Lin("low", {"wide": eye[:3]}),
            Lin("high", {"wide": eye[2:]}),
            Point("gate", ("low", "high"), lambda u, v: torch.tanh(u) * torch.sigmoid(v)),
            self.affine("narrow", "gate"),
            Point("top", ("narrow",), silu),
            self.affine("last", "top"),
        ]


class NestedResidual(Handwritten):
    """A residual inside a residual, each around a transfer function: the skips carry activations.

    ``a`` is read by a linear layer and by two sums, ``s`` by a linear layer and by one sum.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (layer(generator) for _ in range(3))
        self.last = layer(generator, outputs=3)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.tanh(self.stem(x))
        s = a + silu(self.inner(a))
        z: Tensor = self.last(a + torch.sigmoid(self.outer(s)))
        return z

    def structure(self) -> list[Part]:
        return [
            self.affine("stem", INPUT),
            Point("a", ("stem",), torch.tanh),
            self.affine("inner", "a"),
            Point("s", ("a", "inner"), lambda a, i: a + silu(i)),
            self.affine("outer", "s"),
            Point("t", ("a", "outer"), lambda a, o: a + torch.sigmoid(o)),
            self.affine("last", "t"),
        ]


NETWORKS: tuple[Callable[[torch.Generator], Handwritten], ...] = (
    Residual,
    GateIntoTwo,
    ForkAndConcat,
    SlicedGate,
    NestedResidual,
)
