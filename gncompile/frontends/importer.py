"""What the rules of operators work with: values so far, the graph under construction, and its refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import sympy
import torch
from torch import fx, nn

from ..errors import TraceError
from ..functions.primitives import number, select
from ..graph.model_graph import TracedModel
from . import aten
from .fx_nodes import label_of, op_name, origin_of
from .graph_builder import GraphBuilder
from .uses import Uses
from .values import (
    VALUES,
    Activation,
    Args,
    Condition,
    Constant,
    Shape,
    Shared,
    Varying,
    Weight,
)

Trace = Callable[[nn.Module, tuple[torch.Tensor, ...]], TracedModel]


class Importer:
    """One FX graph on its way; ``values`` holds what every FX node has become.

    ``uses`` tells how its parameters meet, ``trace`` makes a graph of a part of it. ``batch`` is the symbol
    of the batch size; sizes that depend on it are made concrete when needed.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        batch: sympy.Expr,
        device: torch.device,
        uses: Uses,
        trace: Trace,
    ) -> None:
        self.builder = builder
        self.batch = batch
        self.device = device
        self.values: dict[fx.Node, Any] = {}
        self.uses = uses
        self.trace = trace
        self._first: dict[int, tuple[str, fx.Node]] = {}

    @property
    def inputs(self) -> list[Activation]:
        """The network's inputs."""
        found = (v for n, v in self.values.items() if n.op == "placeholder")
        return [value for value in found if isinstance(value, Activation)]

    # errors

    def refuse(self, node: fx.Node, found: str, instead: str) -> NoReturn:
        """Raise a :class:`TraceError` about ``node``."""
        raise TraceError(found, where=str(origin_of(node)), instead=instead)

    def refuse_mixing(self, node: fx.Node) -> NoReturn:
        """An operator whose result is not one row a sample, computed from that sample alone."""
        dtypes = [getattr(each.meta.get("val"), "dtype", None) for each in node.all_input_nodes[1:]]
        if torch.bool in dtypes and op_name(node) == "index":
            self.refuse(
                node,
                "an index by a condition keeps the rows where it holds, and their number depends on values",
                "choose by torch.where, or leave samples out of the loss by weights of 0: "
                "gncompile.losses.weighted",
            )
        self.refuse(
            node,
            f"{op_name(node)} mixes samples: dimension 0 is the batch, and no output row may depend on "
            "another sample's row",
            "work on the dimensions after the first, and keep the batch dimension first",
        )

    def refuse_parameter(self, node: fx.Node, weight: Weight) -> NoReturn:
        """A trainable parameter in an operator that has no rule for it."""
        others = {
            value.name
            for value in (self.values.get(source) for source in node.all_input_nodes)
            if isinstance(value, Weight) and value.trainable and value.name != weight.name
        }
        so = f", and so is {', '.join(map(repr, sorted(others)))}" if others else ""
        if op_name(node) in aten.PRODUCTS:
            self.refuse(
                node,
                f"the trainable parameter {weight.name!r} is used in {op_name(node)}{so}, on what does not "
                "depend on the network's input",
                "feed layers from the input: a step from a state of zeros is the layer's bias alone; or "
                "freeze it with requires_grad_(False)",
            )
        self.refuse(
            node,
            f"the trainable parameter {weight.name!r} is used in {op_name(node)}{so}; only weights and "
            "biases of affine layers can be trained",
            "freeze it with requires_grad_(False), or use it as an affine layer's weight [out, in]",
        )

    def use(self, node: fx.Node, weight: Weight, how: str) -> None:
        """Note how a trainable parameter is used: as a layer's weight, say; it is always the same."""
        if not weight.trainable or weight.computed is not None:
            return
        known, first = self._first.setdefault(id(weight.parameter), (how, node))
        if known != how:
            self.refuse(
                node,
                f"the parameter {weight.name!r} is used as {how}, and as {known} at: {origin_of(first)}",
                "use it in one way, or give each use its own parameter",
            )

    def shared(self, node: fx.Node, value: Weight | Shared) -> Shared:
        """A trainable parameter as a vector that all samples share."""
        if isinstance(value, Shared):
            return value
        self.use(node, value, "a vector")
        y, shape = self.builder.parameter(value, origin_of(node)), tuple(value.parameter.shape)
        if not value.transposed:
            return Shared(y.name, shape)
        index = np.arange(math.prod(shape)).reshape(shape).swapaxes(-1, -2)
        label = f"{y.name}_transposed"
        moved = self.builder.select(label, [y], index.reshape(-1), index.shape, origin_of(node))
        return Shared(moved.name, index.shape)

    def refuse_known(self, node: fx.Node, name: str) -> None:
        """Refuse the operators listed in :data:`aten.REFUSED`."""
        if any("embedding_renorm" in str(reader.target) for reader in node.users):
            name = "embedding_renorm"  # what prepares it is not what the user wrote
        if name in aten.REFUSED:
            self.refuse(
                node,
                f"{name} cannot be compiled: {aten.REFUSED[name]}",
                aten.INSTEAD.get(
                    aten.REFUSED[name],
                    "use operators that are elementwise or affine in each sample's features",
                ),
            )

    def refuse_varying(self, node: fx.Node, value: Varying) -> NoReturn:
        """An activation meets what was made of the batch size, or of places in the batch."""
        origin, name = origin_of(value.node), op_name(value.node)
        instead = (
            "compute it in __init__, and keep it as a buffer or a list of numbers"
            if value.on == VALUES
            else "let every sample be computed alike: leave averages over samples to the loss, and pass what "
            "differs between samples as an input [N, ...]"
        )
        self.refuse(
            value.node,
            f"the result of {name} depends on {value.on}, and {op_name(node)} brings it into the network"
            + ("" if origin == origin_of(node) else f" at: {origin_of(node)}"),
            instead,
        )

    def sample_shapes(self, node: fx.Node) -> list[Shape]:
        """Per-sample shapes of the node's results, after checking that dimension 0 is the batch."""
        result = node.meta["val"]
        shapes = []
        for value in [result] if isinstance(result, torch.Tensor) else result:
            batch, *rest = value.shape if value.ndim else (0,)
            if any(
                isinstance(s, torch.SymInt) and s.node.expr.free_symbols - {self.batch}
                for s in rest
            ):
                self.refuse(
                    node,
                    f"the number of features {op_name(node)} gives depends on values of tensors",
                    "select features by their numbers, h[:, [0, 2]], instead of by a mask",
                )
            one_row_a_sample = isinstance(batch, torch.SymInt) and batch.node.expr == self.batch
            if not one_row_a_sample or not all(isinstance(size, int) for size in rest):
                self.refuse_mixing(node)
            shapes.append(tuple(rest))
        return shapes

    # arguments

    def values_of(self, raw: Any) -> Any:
        """Replace FX nodes by what they have become."""
        if isinstance(raw, fx.Node):
            return self.values[raw]
        if isinstance(raw, dict):
            return {name: self.values_of(value) for name, value in raw.items()}
        if isinstance(raw, list | tuple):
            return [self.values_of(value) for value in raw]
        return raw

    # pointwise nodes

    def pointwise(
        self, node: fx.Node, name: str, args: Args, shape: Shape, rule: aten.Rule | None = None
    ) -> Activation:
        """``y = φ(x; c)`` with φ from the table, everything broadcast to ``shape``."""
        arguments: dict[str, tuple[sympy.Symbol, Activation]] = {}
        constants: dict[str, tuple[sympy.Symbol, str]] = {}

        def symbolic(value: Any) -> Any:
            if isinstance(value, list):
                return [symbolic(item) for item in value]
            if isinstance(value, Weight) and value.trainable:
                value = self.shared(node, value)
            if isinstance(value, Activation | Shared):
                x = self.broadcast(node, value, shape)
                return arguments.setdefault(x.name, (_symbol(x.name), x))[0]
            if isinstance(value, Condition):
                margin = symbolic(value.margin)
                return select(margin, 1, 0) if value.holds_if_positive else select(margin, 0, 1)
            if isinstance(value, Constant) and value.literal is not None:
                return self._number(node, value.literal)
            if isinstance(value, Weight | Constant):
                vector = self._constant_vector(node, value, shape)
                known = self.builder.constant(value.name, vector)
                return constants.setdefault(known, (_symbol(known), known))[0]
            return self._number(node, value)

        symbols = {key: symbolic(value) for key, value in args.items()}
        try:
            expression = aten.expression_of(rule or aten.POINTWISE[name], symbols)
        except ValueError as error:
            self.refuse(node, f"{name} cannot be compiled: {error}", "use another form of it")
        return self.builder.pointwise(
            label_of(node, name),
            expression,
            arguments.values(),
            constants.values(),
            shape,
            origin_of(node),
        )

    def constant(self, node: fx.Node, value: Constant) -> Activation:
        """A constant row as an activation, the same for every sample."""
        shape = tuple(value.tensor.shape[1:])
        label, origin = f"{value.name}_row", origin_of(node)
        nothing = np.full(math.prod(shape), -1)
        zeros = self.builder.select(label, self.inputs, nothing, shape, origin)
        if value.literal == 0.0 or not bool(value.tensor.any()):
            return zeros
        args = {"self": zeros, "other": value, "alpha": 1}
        return self.pointwise(node, "add", args, shape)

    def broadcast(self, node: fx.Node, x: Activation | Shared, shape: Shape) -> Activation:
        """Repeat the features of ``x`` until they have ``shape``; no node when they already do."""
        own = x.shape
        if isinstance(x, Shared) and len(own) == len(shape) + 1 and own[0] == 1:
            own = own[1:]  # its first dimension meets the batch
        if len(own) > len(shape) or (isinstance(x, Activation) and len(own) != len(shape)):
            self.refuse_mixing(node)
        index = np.broadcast_to(np.arange(math.prod(own)).reshape(own), shape).reshape(-1)
        row = Activation(x.name, own)
        return self.builder.select(f"{x.name}_expanded", [row], index, shape, origin_of(node))

    def _number(self, node: fx.Node, value: Any) -> Any:
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            self.refuse_number(node, value)
        if isinstance(value, bool):  # torch computes with it as with 1 or 0
            return sympy.Integer(value)
        if not isinstance(value, int | float):
            return value
        if not math.isfinite(value):
            self.refuse(node, f"{op_name(node)} uses the number {value}", "use finite numbers")
        return number(value)

    def refuse_number(self, node: fx.Node, number: Any) -> NoReturn:
        """A number that export knows by a symbol only: made of the batch size, or taken from a tensor."""
        if number.node.expr.free_symbols - {self.batch}:
            self.refuse(
                node,
                f"{op_name(node)} computes with a number taken out of a tensor (.item(), tolist, nonzero)",
                "keep it a tensor; torch.where chooses per element",
            )
        self.refuse(
            node,
            f"{op_name(node)} computes with the batch size",
            "leave averages over samples to the loss",
        )

    def _constant_vector(
        self, node: fx.Node, value: Weight | Constant, shape: Shape
    ) -> torch.Tensor:
        """A constant as a flat vector ``[size]``, a view of the user's tensor where possible."""
        if isinstance(value, Weight) and value.trainable:
            self.refuse_parameter(node, value)
        tensor = value.tensor
        if tensor.ndim == len(shape) + 1 and tensor.shape[0] == 1:
            tensor = tensor[0]
        if tensor.ndim > len(shape):
            self.refuse_mixing(node)
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            self.refuse(
                node,
                f"{op_name(node)} uses a constant that is not a number everywhere",
                "fill it with numbers; torch.empty holds whatever was there before",
            )
        if tensor.numel() == 1:
            return tensor.reshape(1).expand(math.prod(shape))
        return tensor.expand(shape).reshape(-1)


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)
