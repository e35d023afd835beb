"""Build a model graph node by node: unique names, shared constants, the tensors behind the names."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import sympy
import torch

from ..functions.primitives import number
from ..graph.computed import Computed
from ..graph.dead_nodes import remove_dead_nodes
from ..graph.embedding import Embedding, OneHot
from ..graph.interpolate import Interpolate
from ..graph.layers import Affine, LayerOp, Parameter
from ..graph.model_graph import ModelGraph, TracedModel
from ..graph.nodes import FixedLinear, Input, Node, Op, Origin, Output, Pointwise, Select
from .fx_nodes import identifier
from .values import Activation, Weight

_FIRST = sympy.Symbol("x", real=True)


class GraphBuilder:
    """Collects nodes, parameters and constants; every method that adds a node returns its activation."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.parameters: dict[str, torch.Tensor] = {}
        self.constants: dict[str, torch.Tensor] = {}
        self._nodes: dict[str, Node] = {}
        self._vectors: dict[str, Activation] = {}
        self._selects: dict[tuple[Select, tuple[str, ...]], Node] = {}

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def input(
        self, name: str, position: int, shape: tuple[int, ...], whole: bool = False
    ) -> Activation:
        x = self._add(name, Input(position, whole), (), shape, Origin())
        return replace(x, whole=whole)

    def embedding(
        self,
        x: Activation,
        weight: Weight,
        padding: int | None,
        shape: tuple[int, ...],
        origin: Origin,
    ) -> Activation:
        """``y_s = W[i_s]``; the layer is named like an affine one."""
        self.parameters[weight.name] = weight.parameter
        layer, places = weight.name.removesuffix(".weight"), math.prod(x.shape)
        classes = len(weight.parameter)
        op = Embedding(layer, weight.name, None, weight.trainable, True, places, classes, padding)
        return self._add(layer, op, (x.name,), shape, origin)

    def one_hot(
        self, label: str, x: Activation, classes: int, shape: tuple[int, ...], origin: Origin
    ) -> Activation:
        """Rows with a one at each of the whole numbers x."""
        return self._add(label, OneHot(classes), (x.name,), shape, origin)

    def source(self, label: str, op: Op, shape: tuple[int, ...], origin: Origin) -> Activation:
        """A node without inputs."""
        return self._add(label, op, (), shape, origin)

    def count(self, kind: type[Op]) -> int:
        """The nodes of a kind so far."""
        return sum(isinstance(node.op, kind) for node in self._nodes.values())

    def affine(
        self,
        x: Activation,
        weight: Weight,
        bias: Weight | None,
        shape: tuple[int, ...],
        origin: Origin,
    ) -> Activation:
        """``y = x Wᵀ + b`` at every place."""
        places = math.prod(shape[:-1])
        kind = partial(Affine, places=places, transposed=weight.transposed)
        return self.layer(kind, x, weight, bias, shape, origin)

    def layer(
        self,
        kind: Callable[..., LayerOp],
        x: Activation,
        weight: Weight,
        bias: Weight | None,
        shape: tuple[int, ...],
        origin: Origin,
    ) -> Activation:
        """A use of a weight; the layer is named after the weight's module, or the weight itself."""
        layer = weight.name.removesuffix(".weight")
        for used in (weight, bias):
            if used is not None and used.computed is None:
                self.parameters[used.name] = used.parameter
        op = kind(
            layer,
            weight.name,
            bias.name if bias else None,
            trainable=weight.trainable,
            bias_trainable=bias is None or bias.trainable,
            computed=weight.computed,
        )
        return self._add(layer, op, (x.name,), shape, origin)

    def parameter(self, weight: Weight, origin: Origin) -> Activation:
        """A trainable vector, one node for all that read it; named after the parameter."""
        name, size = weight.name, weight.parameter.numel()
        if name not in self._vectors:
            self.parameters[name] = weight.parameter
            self._vectors[name] = self._add(name, Parameter(name, name), (), (size,), origin)
        return self._vectors[name]

    def computed_row(self, name: str, computed: Computed, size: int, origin: Origin) -> Activation:
        """What is computed of parameters, as a row that all samples share."""
        op = Parameter(name, name, computed=computed)
        return self._add(name, op, (), (size,), origin)

    def attach_bias(self, y: Activation, bias: Weight) -> None:
        """Turn the bias-less ``y = x Wᵀ`` into ``y = x Wᵀ + b``."""
        node = self._nodes[y.name]
        assert isinstance(node.op, Affine)
        self.parameters[bias.name] = bias.parameter
        op = replace(node.op, bias=bias.name, bias_trainable=bias.trainable)
        self._nodes[y.name] = Node(y.name, op, node.inputs, node.shape, node.origin)

    def add(
        self,
        label: str,
        op: Op,
        inputs: Sequence[Activation],
        shape: tuple[int, ...],
        origin: Origin,
    ) -> Activation:
        """A node of any kind without tensors of its own."""
        return self._add(label, op, tuple(x.name for x in inputs), shape, origin)

    def select(
        self,
        label: str,
        inputs: Sequence[Activation],
        index: np.ndarray,
        shape: tuple[int, ...],
        origin: Origin,
        fill: float = 0.0,
    ) -> Activation:
        """``y_j = [x_1|x_2|…]_index[j]``; no node when that is the one input in its own order."""
        if index.size and (index < 0).all():
            # nothing is selected: a constant, which needs an input of its size
            x = self.select(label, inputs, np.zeros_like(index), shape, origin)
            return self.pointwise(label, number(fill), [(_FIRST, x)], [], shape, origin)
        inputs, index = _without_unused(inputs, index)
        if len(inputs) == 1 and not _is_identity(inputs[0], index):
            inputs, index = self._composed(inputs[0], index)
        if len(inputs) == 1 and _is_identity(inputs[0], index):
            return Activation(inputs[0].name, shape)
        op = Select(tuple(index.tolist()), fill if (index < 0).any() else 0.0)
        key = (op, tuple(x.name for x in inputs))
        if key not in self._selects:
            self._selects[key] = self._nodes[self._add(label, op, key[1], shape, origin).name]
        return Activation(self._selects[key].name, shape)

    def _composed(self, x: Activation, index: np.ndarray) -> tuple[list[Activation], np.ndarray]:
        """A selection from a selection, in which no feature is twice, as one from its source.

        A selection from several is passed by where only one of these is wanted.
        """
        node = self._nodes[x.name]
        if not isinstance(node.op, Select):
            return [x], index
        inner = np.array(node.op.index)
        if (inner < 0).any() or len(np.unique(inner)) < len(inner):
            return [x], index
        sources = [Activation(n, self._nodes[n].shape) for n in node.inputs]
        wanted, moved = _without_unused(sources, np.where(index < 0, -1, inner[index]))
        return (wanted, moved) if len(wanted) == 1 else ([x], index)

    def fixed_linear(
        self,
        label: str,
        x: Activation,
        matrix: torch.Tensor,
        shape: tuple[int, ...],
        origin: Origin,
        matrix_name: str | None = None,
        before: int = 1,
        after: int = 1,
    ) -> Activation:
        """``y = x (I ⊗ A ⊗ I)ᵀ`` with the constant ``matrix`` A: [out, in] along ``[before, in, after]``."""
        name = self.constant(matrix_name or f"{self._unique(identifier(label))}_matrix", matrix)
        op = FixedLinear(name, before, after)
        return self._add(label, op, (x.name,), shape, origin)

    def pointwise(
        self,
        label: str,
        expression: sympy.Expr,
        arguments: Iterable[tuple[sympy.Symbol, Activation]],
        constants: Iterable[tuple[sympy.Symbol, str]],
        shape: tuple[int, ...],
        origin: Origin,
    ) -> Activation:
        """``y = φ(x; c)``; unused arguments are left out, an identity is no node."""
        free = expression.free_symbols
        given = list(arguments)
        # a constant φ still needs one input, to know the batch size
        inputs = [(symbol, x) for symbol, x in given if symbol in free] or given[:1]
        if expression == inputs[0][0]:
            return Activation(inputs[0][1].name, shape)
        op = Pointwise(
            expression,
            tuple(symbol for symbol, _ in inputs),
            tuple((symbol, name) for symbol, name in constants if symbol in free),
        )
        return self._add(label, op, tuple(x.name for _, x in inputs), shape, origin)

    def constant(self, name: str, tensor: torch.Tensor) -> str:
        """Register a constant, keeping the user's storage when the dtype allows; returns its name."""
        tensor = tensor.detach().to(self.dtype)
        candidate, count = name, 1
        while candidate in self._nodes or not _same(self.constants.get(candidate, tensor), tensor):
            count += 1
            candidate = f"{name}_{count}"
        self.constants[candidate] = tensor
        return candidate

    def finish(self, output: Activation, op: Output, name: str) -> TracedModel:
        """Add the output, drop what it does not depend on, and check the result."""
        self._add("output", op, (output.name,), output.shape, Origin())
        graph = remove_dead_nodes(ModelGraph(list(self._nodes.values())))
        graph.check()
        ops = [node.op for node in graph]
        uses = [op for op in ops if isinstance(op, LayerOp)]
        parameters = {n for op in uses for n in op.parameters}
        inner = [n.op for op in uses if op.computed for n in op.computed.nodes]
        ops += inner
        constants = {op.matrix for op in ops if isinstance(op, FixedLinear)}
        constants |= {n for op in ops if isinstance(op, Pointwise) for _, n in op.constants}
        constants |= {op.grid for op in ops if isinstance(op, Interpolate)}
        return TracedModel(
            graph,
            {n: tensor for n, tensor in self.parameters.items() if n in parameters},
            {n: tensor for n, tensor in self.constants.items() if n in constants},
            name,
        )

    def _add(
        self, label: str, op: Op, inputs: tuple[str, ...], shape: tuple[int, ...], origin: Origin
    ) -> Activation:
        name = self._unique(identifier(label))
        self._nodes[name] = Node(name, op, inputs, shape, origin)
        return Activation(name, shape)

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._nodes or candidate in self.constants:
            count += 1
            candidate = f"{name}_{count}"
        return candidate


def _without_unused(
    inputs: Sequence[Activation], index: np.ndarray
) -> tuple[list[Activation], np.ndarray]:
    """Leave out inputs no index refers to, join repeated ones, and renumber the index accordingly."""
    kept: dict[str, tuple[Activation, int]] = {}
    renumbered = np.full_like(index, -1)
    start = total = 0
    for x in inputs:
        size = math.prod(x.shape)
        here = (index >= start) & (index < start + size)
        if here.any():
            if x.name not in kept:
                kept[x.name] = (x, total)
                total += size
            renumbered[here] = index[here] - start + kept[x.name][1]
        start += size
    return [x for x, _ in kept.values()], renumbered


def _is_identity(x: Activation, index: np.ndarray) -> bool:
    return np.array_equal(index, np.arange(math.prod(x.shape)))


def _same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same view of the same storage."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
