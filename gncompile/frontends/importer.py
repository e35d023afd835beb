"""Walk an exported program and translate each aten operator into nodes of the model graph."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import sympy
import torch
from torch import fx

from ..errors import TraceError, message
from ..functions import number, select
from . import affine, aten, special, structural
from .fx_nodes import bind, label_of, op_name, origin_of
from .graph_builder import GraphBuilder
from .values import Activation, Args, Condition, Constant, Shape, Weight, reshaped, values_in


class Importer:
    """Translates one FX graph; ``values`` holds what every FX node has become.

    ``batch`` is the symbol of the batch size. Sizes that depend on it are made concrete when needed.
    """

    def __init__(self, builder: GraphBuilder, batch: sympy.Expr, device: torch.device) -> None:
        self.builder = builder
        self.batch = batch
        self.device = device
        self.values: dict[fx.Node, Any] = {}
        self.uses: dict[int, tuple[str, fx.Node]] = {}

    def translate(self, node: fx.Node) -> None:
        """Translate one ``call_function`` node."""
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int):
            self.values[node] = node.meta["val"]
        elif node.target is operator.getitem:
            source, position = node.args
            self.values[node] = self.values[source][position]  # type: ignore[index]
        elif isinstance(node.target, torch._ops.OpOverload):
            self.values[node] = self._operator(node, op_name(node), self._values_of(bind(node)))
        else:
            self.refuse(node, f"{node.target} has no rule", "compute it outside the network")

    # errors

    def refuse(self, node: fx.Node, found: str, instead: str) -> NoReturn:
        """Raise a :class:`TraceError` about ``node``."""
        raise TraceError(message(found, where=str(origin_of(node)), instead=instead))

    def refuse_mixing(self, node: fx.Node) -> NoReturn:
        """An operator whose result is not one row a sample, computed from that sample alone."""
        self.refuse(
            node,
            f"{op_name(node)} mixes samples: dimension 0 is the batch, and no output row may depend on "
            "another sample's row",
            "work on the dimensions after the first, and keep the batch dimension first",
        )

    def refuse_parameter(self, node: fx.Node, weight: Weight) -> NoReturn:
        """A trainable parameter outside an affine layer."""
        self.refuse(
            node,
            f"the trainable parameter {weight.name!r} is used in {op_name(node)}; only weights and "
            "biases of affine layers can be trained",
            "freeze it with requires_grad_(False), or use it as an affine layer's weight [out, in]",
        )

    def refuse_known(self, node: fx.Node, name: str) -> None:
        """Refuse the operators listed in :data:`aten.REFUSED`."""
        if name in aten.REFUSED:
            self.refuse(
                node,
                f"{name} cannot be compiled: {aten.REFUSED[name]}",
                "use operators that are elementwise or affine in each sample's features",
            )

    # dispatch

    def _operator(self, node: fx.Node, name: str, args: Args) -> Any:
        values = list(values_in(args))
        if name in aten.ASSERTS:
            return None
        if name in aten.CREATORS:
            tensor = self.run_once(node, args)
            return Constant(name, tensor, float(tensor.reshape(-1)[0]) if tensor.numel() else None)
        if any(isinstance(value, Activation | Condition) for value in values):
            return self._on_activations(node, name, args)
        if len(values) == 1 and isinstance(values[0], Weight):
            view = affine.view_of_weight(values[0], name, self.run_once(node, args))
            if view is not None:
                return view
        for value in values:
            if isinstance(value, Weight) and value.trainable:
                self.refuse_parameter(node, value)
        return self._on_constants(node, name, args)

    def _on_activations(self, node: fx.Node, name: str, args: Args) -> Any:
        self.refuse_known(node, name)
        if not aten.is_known(name):
            self.refuse(
                node,
                f"the operator {node.target} is not supported",
                f"write it with supported operators ({aten.supported()})",
            )
        if name == "batch_norm":
            return special.batch_norm(self, node, args)
        shapes = self.sample_shapes(node)
        if name in aten.COMPARISONS:
            rule, positive = aten.COMPARISONS[name]
            return Condition(self.pointwise(node, name, args, shapes[0], rule), positive)
        if name in aten.ALIASES:
            return reshaped(next(values_in(args)), shapes[0])
        if name in special.RULES:
            return special.RULES[name](self, node, args, shapes[0])
        self._check_dtype(node)
        if name in aten.PRODUCTS:
            return affine.product(self, node, name, args, shapes[0])
        if name in aten.POINTWISE:
            return self.pointwise(node, name, args, shapes[0])
        if name in aten.SELECTING:
            return structural.selection(self, node, name, args, shapes)
        return structural.linear_operator(self, node, name, args, shapes[0])

    def _on_constants(self, node: fx.Node, name: str, args: Args) -> Any:
        """Compute at once what does not depend on the input."""
        values = list(values_in(args))
        if not values:
            self.refuse_known(node, name)
        result = self.run_once(node, args)
        alias = name in aten.ALIASES and len(values) == 1
        label = values[0].name if alias else "_".join([*(v.name for v in values[:1]), name])  # type: ignore[union-attr]
        literal = getattr(values[0], "literal", None) if alias else None
        if isinstance(result, torch.Tensor):
            return Constant(label, result, literal)
        return [Constant(f"{label}_{i}", part) for i, part in enumerate(result)]

    def sample_shapes(self, node: fx.Node) -> list[Shape]:
        """Per-sample shapes of the node's results, after checking that dimension 0 is the batch."""
        result = node.meta["val"]
        shapes = []
        for value in [result] if isinstance(result, torch.Tensor) else result:
            batch, *rest = value.shape if value.ndim else (0,)
            one_row_a_sample = isinstance(batch, torch.SymInt) and batch.node.expr == self.batch
            if not one_row_a_sample or not all(isinstance(size, int) for size in rest):
                self.refuse_mixing(node)
            shapes.append(tuple(rest))
        return shapes

    def _check_dtype(self, node: fx.Node) -> None:
        result = node.meta["val"]
        dtype = (result if isinstance(result, torch.Tensor) else result[0]).dtype
        mask = dtype == torch.bool and (
            op_name(node) in aten.SELECTING or op_name(node) in aten.LOGICAL
        )
        if dtype != self.builder.dtype and not mask:
            self.refuse(
                node,
                f"{op_name(node)} gives {dtype}, while the network's input is {self.builder.dtype}",
                "keep one floating-point dtype throughout the network",
            )

    # arguments

    def _values_of(self, raw: Any) -> Any:
        """Replace FX nodes by what they have become."""
        if isinstance(raw, fx.Node):
            return self.values[raw]
        if isinstance(raw, dict):
            return {name: self._values_of(value) for name, value in raw.items()}
        if isinstance(raw, list | tuple):
            return [self._values_of(value) for value in raw]
        return raw

    def concrete(self, value: Any, rows: int, dtype: torch.dtype | None = None) -> Any:
        """A leaf argument for running an operator on ``rows`` samples, floating tensors as ``dtype``."""
        if isinstance(value, torch.SymInt):
            return int(value.node.expr.subs(self.batch, rows))
        if isinstance(value, Constant | Weight):
            tensor = value.tensor
            return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
        return value

    def run_once(self, node: fx.Node, args: Args) -> Any:
        """The operator on constants; sizes are those of a batch of one sample."""

        def leaf(value: Any) -> Any:
            if isinstance(value, Activation):
                return torch.empty((1, *value.shape), dtype=self.builder.dtype, device=self.device)
            return self.concrete(value, rows=1)

        return run(node, args, leaf)

    # pointwise nodes

    def pointwise(
        self, node: fx.Node, name: str, args: Args, shape: Shape, rule: aten.Rule | None = None
    ) -> Activation:
        """``y = φ(x; c)`` with φ from the table, everything broadcast to ``shape``."""
        if name == "add" and (whole := affine.with_trailing_bias(self, node, args)) is not None:
            return whole
        arguments: dict[str, tuple[sympy.Symbol, Activation]] = {}
        constants: dict[str, tuple[sympy.Symbol, str]] = {}

        def symbolic(value: Any) -> Any:
            if isinstance(value, list):
                return [symbolic(item) for item in value]
            if isinstance(value, Activation):
                x = structural.broadcast(self, node, value, shape)
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

    def _number(self, node: fx.Node, value: Any) -> Any:
        if isinstance(value, torch.SymInt | torch.SymFloat):
            self.refuse(
                node,
                f"{op_name(node)} computes with the batch size",
                "leave averages over samples to the loss",
            )
        if isinstance(value, bool) or not isinstance(value, int | float):
            return value
        if not math.isfinite(value):
            self.refuse(node, f"{op_name(node)} uses the number {value}", "use finite numbers")
        return number(value)

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
        if tensor.numel() == 1:
            return tensor.reshape(1).expand(math.prod(shape))
        return tensor.expand(shape).reshape(-1)


def run(node: fx.Node, args: Mapping[str, Any], leaf: Callable[[Any], Any]) -> Any:
    """Call the node's operator on ``args`` (by schema name) after mapping each leaf by ``leaf``."""

    def mapped(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [mapped(item) for item in value]
        return leaf(value)

    schema = node.target._schema  # type: ignore[union-attr]
    positional = [mapped(args[a.name]) for a in schema.arguments if not a.kwarg_only]
    keywords = {a.name: mapped(args[a.name]) for a in schema.arguments if a.kwarg_only}
    with torch.no_grad():
        return node.target(*positional, **keywords)  # type: ignore[operator]


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)
