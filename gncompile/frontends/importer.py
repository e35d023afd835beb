"""Walk an exported program and translate each aten operator into nodes of the model graph."""

from __future__ import annotations

import math
import operator
from dataclasses import replace
from typing import Any, NoReturn

import sympy
import torch
from torch import fx

from ..errors import TraceError, message
from ..functions.primitives import number, select
from . import affine, aten, special, structural
from .constants import VALUES, is_batch_size, on_constants, symbolic_numbers
from .fx_nodes import bind, label_of, op_name, origin_of
from .graph_builder import GraphBuilder
from .values import (
    Activation,
    Args,
    Condition,
    Constant,
    Refused,
    Shape,
    Varying,
    Weight,
    reshaped,
    values_in,
)


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
            found = self.values[source]  # type: ignore[index]
            whole = isinstance(found, Varying | Refused)
            self.values[node] = found if whole else found[position]
        elif isinstance(node.target, torch._ops.OpOverload):
            self.values[node] = self._operator(node, op_name(node), self.values_of(bind(node)))
        elif "functorch" in getattr(node.target, "__module__", ""):
            self.refuse(
                node,
                "torch.func or torch.vmap inside forward has no rule",
                "write the derivative, or the map over samples, out with tensor operators",
            )
        else:
            self.refuse(node, f"{node.target} has no rule", "compute it outside the network")

    def stand_in(self, node: fx.Node) -> Activation | Refused:
        """For the result of an operator that was refused, so that what follows it is looked at too."""
        try:
            shapes = self.sample_shapes(node)
        except (TraceError, AttributeError, TypeError):
            return Refused()
        single = isinstance(node.meta["val"], torch.Tensor)
        if not single or node.meta["val"].dtype != self.builder.dtype:
            return Refused()
        return self.builder.input(label_of(node, "refused"), -1, shapes[0])

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
        used = self.uses.get(id(weight.parameter))
        if used is not None and used[1] is not node:
            self.refuse_tied(node, weight)
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

    def refuse_tied(self, node: fx.Node, weight: Weight) -> NoReturn:
        """A trainable parameter with a second use."""
        name, first = self.uses[id(weight.parameter)]
        names = repr(name) if name == weight.name else f"{name!r} = {weight.name!r}"
        self.refuse(
            node,
            f"the parameter {names} is used twice (weight tying), first at: {origin_of(first)}",
            "give each use its own parameter; tied weights are not supported yet",
        )

    def refuse_known(self, node: fx.Node, name: str) -> None:
        """Refuse the operators listed in :data:`aten.REFUSED`."""
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

    # dispatch

    def _operator(self, node: fx.Node, name: str, args: Args) -> Any:
        values = list(values_in(args))
        if name in aten.ASSERTS:
            return None
        if any(isinstance(value, Refused) for value in values):
            return Refused()
        if aten.is_random(node.target) and name not in aten.DROPOUTS and name != "rrelu":
            self.refuse_known(node, name)
            self.refuse(node, f"{name} cannot be compiled: {aten.RANDOM}", "draw them outside")
        active = any(isinstance(value, Activation | Condition) for value in values)
        if name in aten.CREATORS:
            made = on_constants(self, node, args, lambda _: name)
            return replace(made, literal=_literal(made)) if isinstance(made, Constant) else made
        varying = next((value for value in values if isinstance(value, Varying)), None)
        if active and varying is not None:
            self.refuse_varying(node, varying)
        if active and not (name in aten.SHAPED_AS and isinstance(args["self"], Weight | Constant)):
            return self._on_activations(node, name, args)
        if len(values) == 1 and isinstance(values[0], Weight):
            result = on_constants(self, node, args, lambda _: name)
            known = isinstance(result, Constant)
            view = affine.view_of_weight(values[0], name, result.tensor) if known else None
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
        for argument, symbolic in symbolic_numbers(args):
            if name not in aten.ALIASES and not is_batch_size(self, argument, symbolic):
                self._refuse_number(node, symbolic)
        if name in aten.COMPARISONS:
            rule, positive = aten.COMPARISONS[name]
            return Condition(self.pointwise(node, name, args, shapes[0], rule), positive)
        if name in aten.ALIASES:
            return reshaped(next(values_in(args)), shapes[0])
        if name in special.RULES:
            return special.RULES[name](self, node, args, shapes[0])
        self._check_dtype(node)
        if name in aten.LOGICAL:
            special.require_masks(self, node)
        if name in aten.PRODUCTS:
            return affine.product(self, node, name, args, shapes[0])
        if name in aten.POINTWISE:
            return self.pointwise(node, name, args, shapes[0])
        if name in aten.SELECTING:
            return structural.selection(self, node, name, args, shapes)
        return structural.linear_operator(self, node, name, args, shapes[0])

    def _on_constants(self, node: fx.Node, name: str, args: Args) -> Any:
        """Compute at once what does not depend on the input."""
        values = [value for value in values_in(args) if not isinstance(value, Varying)]
        alias = name in aten.ALIASES and len(values) == 1
        label = values[0].name if alias else "_".join([*(v.name for v in values[:1]), name])  # type: ignore[union-attr]
        literal = getattr(values[0], "literal", None) if alias else None
        made = on_constants(self, node, args, lambda i: label if i is None else f"{label}_{i}")
        return replace(made, literal=literal) if isinstance(made, Constant) else made

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

    def _check_dtype(self, node: fx.Node) -> None:
        result = node.meta["val"]
        dtype = (result if isinstance(result, torch.Tensor) else result[0]).dtype
        mask = dtype == torch.bool and (
            op_name(node) in aten.SELECTING or op_name(node) in aten.LOGICAL
        )
        if dtype != self.builder.dtype and not mask:
            masks = not dtype.is_floating_point and any(
                source.meta["val"].dtype == torch.bool
                for source in node.all_input_nodes
                if isinstance(source.meta.get("val"), torch.Tensor)
            )
            self.refuse(
                node,
                f"{op_name(node)} gives {dtype}, while the network's input is {self.builder.dtype}",
                "combine masks with & and |, and count with (h > 0).to(h.dtype)"
                if masks
                else "keep one floating-point dtype throughout the network",
            )

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
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            self._refuse_number(node, value)
        if isinstance(value, bool):  # torch computes with it as with 1 or 0
            return sympy.Integer(value)
        if not isinstance(value, int | float):
            return value
        if not math.isfinite(value):
            self.refuse(node, f"{op_name(node)} uses the number {value}", "use finite numbers")
        return number(value)

    def _refuse_number(self, node: fx.Node, number: Any) -> NoReturn:
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


def _literal(constant: Constant) -> float | None:
    """The one number that a creator fills its result with."""
    tensor = constant.tensor
    return float(tensor.reshape(-1)[0]) if tensor.numel() and not tensor.is_complex() else None


def _symbol(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)
