"""Nodes with parameters, and the layers that they are uses of.

A *layer* is one trainable parameter as a matrix, with its bias ``W̄ = [W, b]``; every node that names it is a
*use*, at one or several places of a sample: positions of a sequence or image, calls of one module, tied
weights. See docs/mathematics.md#one-weight-many-uses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InternalError
from .computed import Computed
from .nodes import Node, Op


@dataclass(frozen=True)
class LayerOp(Op):
    """A use of the parameter ``weight``, and ``bias``; ``layer`` is the module path (``"encoder.0"``).

    ``trainable`` is False for a frozen parameter: curvature passes through the node, but it has no factors.
    ``bias_trainable`` decides whether the factors use the homogeneous coordinate ``[x, 1]``. A weight that is
    ``computed`` of parameters is no parameter itself.
    """

    layer: str
    weight: str
    bias: str | None = None
    trainable: bool = True
    bias_trainable: bool = True
    computed: Computed | None = field(default=None, kw_only=True, hash=False, repr=False)

    @property
    def homogeneous(self) -> bool:
        """Whether the bias is trained together with the weight as ``W̄ = [W, b]``."""
        return self.bias is not None and self.trainable and self.bias_trainable

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters that the node is made of."""
        weights = (self.weight,) if self.computed is None else self.computed.parameters
        return weights if self.bias is None else (*weights, self.bias)

    def matrix(self, size: int, sizes: list[int]) -> tuple[int, int]:
        """Rows and columns of W as it lies in memory, for a node of ``size`` features from ``sizes``."""
        raise NotImplementedError

    def places_in(self, size: int, sizes: list[int]) -> int:
        """At how many places of a sample the weight is applied."""
        return 1

    @property
    def reversed(self) -> bool:
        """Whether the input meets the rows of W, and the columns give the output: ``y = x W``."""
        return False

    places_last: ClassVar[bool] = False
    """Whether an output's places vary faster than its features: ``[out, T]``, channels first."""

    def apply(self, weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
        """The node's value ``[N, size]`` in plain torch, of the user's own parameters."""
        raise NotImplementedError

    def input_rows(self, *inputs: Tensor) -> Tensor:
        """What W meets at every place, ``[N, S, columns]``, in plain torch."""
        raise NotImplementedError


@dataclass(frozen=True)
class Affine(LayerOp):
    """``y_s = x_s Wᵀ + b`` with ``W: [out, in]``, ``b: [out]`` at each of ``places``; ``y_s = x_s W``
    where ``transposed``."""

    places: int = 1
    transposed: bool = False

    def fits(self, size: int, sizes: list[int]) -> bool:
        return len(sizes) == 1 and size % self.places == 0 and sizes[0] % self.places == 0

    def matrix(self, size: int, sizes: list[int]) -> tuple[int, int]:
        out, into = size // self.places, sizes[0] // self.places
        return (into, out) if self.transposed else (out, into)

    def places_in(self, size: int, sizes: list[int]) -> int:
        return self.places

    def apply(self, weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
        weight = weight.flatten(1)  # of a bilinear layer [out, in, in]
        y = self.input_rows(*inputs) @ (weight if self.transposed else weight.mT)
        return (y if bias is None else y + bias).flatten(1)

    def input_rows(self, *inputs: Tensor) -> Tensor:
        return inputs[0].unflatten(-1, (self.places, -1))

    @property
    def reversed(self) -> bool:
        return self.transposed

    def describe(self, inputs: tuple[str, ...]) -> str:
        transposed = "ᵀ" if self.transposed else ""
        at = f" at {self.places} places" if self.places > 1 else ""
        text = f"affine[{self.layer}{transposed}]({inputs[0]})" + (
            "" if self.bias else " without bias"
        )
        return text + at


@dataclass(frozen=True)
class Parameter(LayerOp):
    """A trainable vector ``p: [d]`` that all samples share: a scale, a shift, a learned position.

    Its W̄ is ``[d, 1]``, and its Gauss-Newton block that of the vector itself.
    """

    def fits(self, size: int, sizes: list[int]) -> bool:
        return not sizes

    def matrix(self, size: int, sizes: list[int]) -> tuple[int, int]:
        return size, 1

    def apply(self, weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
        return weight.reshape(1, -1)

    def describe(self, inputs: tuple[str, ...]) -> str:
        return f"parameter[{self.weight}]"


WIDE = 1024
"""Of a trainable vector of more numbers the diagonal of its block is kept: the whole one takes d² numbers,
and its inverse d³ operations, more than all else in a network with learned positions."""


@dataclass(frozen=True)
class Layer:
    """A trainable parameter and all its ``uses``, in topological order.

    W̄ is ``[rows, columns]``, with a column for the bias where ``homogeneous``. Where all uses are
    ``reversed``, rows and columns are those of the transposed weight: the factor Q is always that of inputs.
    Tied weights have uses of both kinds: ``mirror`` is the transposed weight as a layer, with the uses that
    are not :attr:`straight`. The roles of its two factors are exchanged.
    """

    name: str
    weight: str
    bias: str | None
    rows: int
    columns: int
    places: int
    flipped: bool
    uses: tuple[Node, ...]
    mirror: Layer | None = None
    first_order: bool = False

    @property
    def homogeneous(self) -> bool:
        """Whether W̄ has a column for the bias."""
        return self.bias is not None

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of W̄."""
        return self.rows, self.columns + int(self.homogeneous)

    @property
    def straight(self) -> tuple[Node, ...]:
        """The uses that the factors are made of: the input meets the columns of W̄."""
        found = ((node, node.op) for node in self.uses)
        return tuple(
            n for n, op in found if isinstance(op, LayerOp) and op.reversed == self.flipped
        )

    @property
    def vector(self) -> bool:
        """Whether this is a trainable vector, whose Gauss-Newton block has no second factor."""
        return self.first_order or isinstance(self.uses[0].op, Parameter)

    @property
    def diagonal(self) -> bool:
        """Whether only the diagonal of a trainable vector's block is kept."""
        return self.vector and self.rows > WIDE

    @property
    def node(self) -> Node:
        """The first use."""
        return self.uses[0]

    @property
    def sides(self) -> tuple[Layer, ...]:
        """The layer and its mirror: each has a pair of factors of its own uses."""
        return (self,) if self.mirror is None else (self, self.mirror)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the trained parameters: the weight, and the bias if there is one."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def joined(self, by_name: Mapping[str, Tensor]) -> Tensor:
        """W̄ of values by parameter name, in the parameters' own shapes."""
        weight = by_name[self.weight]
        shape = (self.columns, self.rows) if self.flipped else (self.rows, self.columns)
        weight = weight.reshape(shape).mT if self.flipped else weight.reshape(shape)
        if self.bias is None:
            return weight
        return torch.cat([weight, by_name[self.bias][:, None]], dim=1)

    def split(self, whole: Tensor) -> dict[str, Tensor]:
        """The inverse of :meth:`joined`, as matrices and rows: the weight ``[rows, columns]``, the bias.

        ``whole`` may have dimensions in front.
        """
        weight = whole[..., : self.columns]
        parts = {self.weight: weight.mT if self.flipped else weight}
        return parts if self.bias is None else {**parts, self.bias: whole[..., -1]}


def layers_of(
    nodes: Iterable[Node], sizes: dict[str, int], trainable: bool = True, computed: bool = False
) -> dict[str, Layer]:
    """The trainable or frozen layers by name, in the order of their first uses; ``sizes`` of all nodes.

    With ``computed`` those whose weights are no parameters. Raises
    :class:`~gncompile.errors.InternalError` where uses of one layer disagree.
    """
    uses: dict[str, list[Node]] = {}
    wanted = trainable, computed
    for node in nodes:
        op = node.op
        if isinstance(op, LayerOp) and (op.trainable, op.computed is not None) == wanted:
            uses.setdefault(op.layer, []).append(node)
    return {name: _layer(name, tuple(found), sizes) for name, found in uses.items()}


def vectors_of(nodes: Iterable[Node]) -> dict[str, Layer]:
    """The parameters that weights are computed of, as vectors by name: W̄ is ``[size, 1]``.

    Their uses are all nodes that they meet, in weights or by themselves.
    """
    uses = [node for node in nodes if isinstance(node.op, LayerOp)]
    sizes: dict[str, int] = {}
    for node in uses:
        if isinstance(node.op, LayerOp) and node.op.computed is not None:
            sizes |= {name: made.size for name, made in node.op.computed.inputs.items()}
    return {
        name: Layer(
            name, name, None, size, 1, 1, False,
            tuple(n for n in uses if isinstance(n.op, LayerOp) and name in n.op.parameters),
            first_order=True,
        )
        for name, size in sizes.items()
    }  # fmt: skip


def _layer(name: str, uses: tuple[Node, ...], sizes: dict[str, int]) -> Layer:
    ops = [node.op for node in uses if isinstance(node.op, LayerOp)]
    into = [[sizes[source] for source in node.inputs] for node in uses]
    shapes = {op.matrix(n.size, s) for op, n, s in zip(ops, uses, into, strict=True)}
    biases = {op.bias for op in ops if op.homogeneous}
    if len(shapes) > 1 or len(biases) > 1 or len({op.weight for op in ops}) > 1:
        raise InternalError(
            f"the uses of layer {name!r} disagree: shapes {shapes}, biases {biases}"
        )
    ((rows, columns),) = shapes
    # a gradient that goes on to parameters is made as the weight lies in memory
    flipped = all(op.reversed for op in ops) and ops[0].computed is None
    if flipped:
        rows, columns = columns, rows
    places = Counter[bool]()
    for op, n, s in zip(ops, uses, into, strict=True):
        places[op.reversed] += op.places_in(n.size, s)
    bias, weight, mirror = next(iter(biases), None), ops[0].weight, None
    if places[not flipped]:
        called = f"{name} transposed"
        others = tuple(n for op, n in zip(ops, uses, strict=True) if op.reversed != flipped)
        count = places[not flipped]
        mirror = Layer(called, weight, None, columns, rows, count, not flipped, others)
    return Layer(name, weight, bias, rows, columns, places[flipped], flipped, uses, mirror)
