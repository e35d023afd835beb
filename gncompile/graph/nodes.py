"""Nodes of a model graph: a kind of operation, the nodes it reads, and where it stands in the user's model.

Every tensor is a batch of flat feature vectors ``[N, size]``; ``shape`` keeps the user's per-sample shape
for error texts and printing. A kind of node is a subclass of :class:`Op`; those with parameters are in
:mod:`~gncompile.graph.layers`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import sympy

from ..errors import InternalError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Origin:
    """Where a node comes from in the user's model: module path, ``file:line``, and the line's text."""

    module: str = ""
    location: str = ""
    code: str = ""

    def __str__(self) -> str:
        parts = [f"module {self.module!r}" if self.module else "", self.location, self.code]
        return ", ".join(part for part in parts if part) or "unknown place"


@dataclass(frozen=True)
class Op:
    """What a node computes; a kind of node is a subclass, and a rule in ``derivation/forward``."""

    def fits(self, size: int, sizes: list[int]) -> bool:
        """Whether inputs of so many features give a node of ``size`` features."""
        return len(sizes) == 1

    def describe(self, inputs: tuple[str, ...]) -> str:
        """The operation in one short phrase."""
        return f"{type(self).__name__.lower()}({', '.join(inputs)})"

    def plain(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The same in plain torch, for ``torch.func`` to differentiate; for kinds from outside."""
        raise InternalError(f"{type(self).__name__} has no plain function")


@dataclass(frozen=True)
class Input(Op):
    """The network's input number ``position``."""

    position: int = 0

    def fits(self, size: int, sizes: list[int]) -> bool:
        return not sizes

    def describe(self, inputs: tuple[str, ...]) -> str:
        return f"input {self.position}"


@dataclass(frozen=True)
class Select(Op):
    """``y_j = v[index_j]`` where ``v`` is the concatenation of the inputs; ``-1`` selects ``fill``."""

    index: tuple[int, ...]
    fill: float = 0.0

    def fits(self, size: int, sizes: list[int]) -> bool:
        return len(self.index) == size and all(-1 <= i < sum(sizes) for i in self.index)

    def describe(self, inputs: tuple[str, ...]) -> str:
        return f"select[{len(self.index)} features]({', '.join(inputs)})"


@dataclass(frozen=True)
class FixedLinear(Op):
    """``y_s = x_s Aᵀ`` with the constant ``matrix`` A: [out, in] at each of ``places``: means, say."""

    matrix: str
    places: int = 1

    def fits(self, size: int, sizes: list[int]) -> bool:
        return len(sizes) == 1 and size % self.places == 0 and sizes[0] % self.places == 0

    def describe(self, inputs: tuple[str, ...]) -> str:
        at = f" at {self.places} places" if self.places > 1 else ""
        return f"fixed[{self.matrix}]({inputs[0]}){at}"


@dataclass(frozen=True)
class Pointwise(Op):
    """``y = φ(x_1..x_k; c_1..c_m)`` elementwise.

    ``arguments[i]`` is the symbol of input ``i``. ``constants`` pairs further symbols with the names of
    constant per-feature vectors ``[size]``, broadcast over the batch.
    """

    expression: sympy.Expr
    arguments: tuple[sympy.Symbol, ...]
    constants: tuple[tuple[sympy.Symbol, str], ...] = ()

    def fits(self, size: int, sizes: list[int]) -> bool:
        known = {*self.arguments, *(symbol for symbol, _ in self.constants)}
        alike = len(self.arguments) == len(sizes) and all(each == size for each in sizes)
        return alike and self.expression.free_symbols <= known

    def describe(self, inputs: tuple[str, ...]) -> str:
        shown = [*zip(self.arguments, inputs, strict=True), *self.constants]
        # Of symbols that might be complex, sympy expands real and imaginary parts of all that is nested.
        names = {symbol: sympy.Symbol(name, real=True) for symbol, name in shown}
        return str(self.expression.xreplace(names))


@dataclass(frozen=True)
class Output(Op):
    """The network output ``z``, in the order the loss sees it."""

    def fits(self, size: int, sizes: list[int]) -> bool:
        return sizes == [size]


@dataclass(frozen=True)
class Node:
    """One immutable node: a name, an operation, its inputs' names, and its per-sample shape."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    shape: tuple[int, ...]
    origin: Origin = field(default=Origin(), compare=False)

    @property
    def size(self) -> int:
        """Number of features per sample: the product of ``shape``."""
        return math.prod(self.shape)


def describe(node: Node) -> str:
    """The operation of a node in one short phrase, with its inputs' names."""
    return node.op.describe(node.inputs)
