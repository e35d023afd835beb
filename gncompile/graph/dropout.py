"""Dropout as nodes: the masks of a step are draws of the program, and what they multiply is pointwise.

``y = m ⊙ x``, and for alpha dropout ``y = m ⊙ x + s``, whose m and s follow from one draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch

from ..functions.primitives import number, select
from .fuse_pointwise import fuse_pointwise
from .model_graph import ModelGraph
from .nodes import Node, Op, Pointwise

U = sympy.Symbol("u", real=True)
"""The draw, uniform on [0, 1)."""

SATURATION = sympy.Float("1.7580993408473766")
"""What alpha dropout puts in place of what is dropped, times -1: where SELU saturates, ``λα``."""


@dataclass(frozen=True)
class Mask(Op):
    """``m = φ(u)`` of the draw ``u`` number ``draw``, one number a sample and channel; no inputs.

    Each of the ``channels`` numbers is that of ``positions`` features in turn. The draw is made once a step,
    and everything that the step computes sees the same. Where nothing is dropped, ``m`` is ``rest``.
    """

    draw: int
    expression: sympy.Expr
    rest: int
    channels: int
    positions: int = 1

    def fits(self, size: int, sizes: list[int]) -> bool:
        return not sizes and size == self.channels * self.positions

    def describe(self, inputs: tuple[str, ...]) -> str:
        each = f" for {self.positions} features each" if self.positions > 1 else ""
        return f"mask {self.draw} = {self.expression}{each}"

    def plain(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Without dropout, one row."""
        return torch.full((1, self.channels * self.positions), float(self.rest))


def dropout(p: float) -> sympy.Expr:
    """``m``: 0 with probability p, else ``1 / (1 - p)``, which for ``p = 1`` is never."""
    dropped = number(p)
    return select(dropped - U, 0, 1 / (1 - dropped) if p < 1 else 1)


def alpha_dropout(p: float) -> tuple[sympy.Expr, sympy.Expr]:
    """``m`` and ``s`` of ``y = a (d α' + (1 - d) x) + b``, where ``d`` is 1 with probability p, else 0.

    ``α' = -λα`` is where SELU saturates; ``a = 1/√((1 - p)(1 + p α'²))`` and ``b = -a p α'`` keep mean 0 and
    variance 1. Source: Klambauer, Unterthiner, Mayr, Hochreiter, *Self-normalizing neural networks*, 2017.
    """
    dropped = number(p)
    a = 1 / sympy.sqrt((1 - dropped) * (1 + dropped * SATURATION**2))
    shift = a * dropped * SATURATION
    return select(dropped - U, 0, a), select(dropped - U, shift - a * SATURATION, shift)


def without_dropout(graph: ModelGraph) -> ModelGraph:
    """The graph where nothing is dropped: no masks, and what they multiplied as it is."""
    rest = {n.name: sympy.Integer(n.op.rest) for n in graph if isinstance(n.op, Mask)}
    if not rest:
        return graph
    readers = {reader.name: reader for name in rest for reader in graph.consumers(name)}
    changed = [_at_rest(node, rest) for node in readers.values()]
    return fuse_pointwise(graph.replace(*changed, without=tuple(rest)))


def _at_rest(node: Node, rest: dict[str, sympy.Integer]) -> Node:
    """A pointwise node with the masks that it reads at rest."""
    assert isinstance(node.op, Pointwise)
    pairs = list(zip(node.op.arguments, node.inputs, strict=True))
    values = {symbol: rest[name] for symbol, name in pairs if name in rest}
    arguments, inputs = zip(*((s, name) for s, name in pairs if name not in rest), strict=True)
    op = Pointwise(node.op.expression.xreplace(values), arguments, node.op.constants)
    return Node(node.name, op, inputs, node.shape, node.origin)
