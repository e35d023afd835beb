"""Translate each aten operator of an exported program, by the rule that is its kind's."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..errors import TraceError
from . import (
    affine,
    aten,
    bilinear,
    computed,
    convolution,
    normalising,
    pooling,
    special,
    structural,
)
from .constants import is_batch_size, on_constants, symbolic_numbers
from .export_errors import DERIVED
from .fx_nodes import bind, label_of, op_name
from .importer import Importer
from .shared import on_shared
from .turned import moved, turns
from .values import (
    Activation,
    Args,
    Condition,
    Constant,
    OfParameters,
    Refused,
    Shared,
    Turned,
    Varying,
    Weight,
    activations_in,
    reshaped,
    values_in,
)  # fmt: skip

RULES = {**special.RULES, **convolution.RULES, **pooling.RULES}
"""Operators whose rules are functions of their own."""


def translate(importer: Importer, node: fx.Node) -> None:
    """Translate one ``call_function`` node."""
    if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int):
        importer.values[node] = node.meta["val"]
    elif node.target is operator.getitem:
        source, position = node.args
        found = importer.values[source]  # type: ignore[index]
        if isinstance(found, OfParameters):
            found = {position: replace(found, node=node)}
        whole = isinstance(found, Varying | Refused)
        importer.values[node] = _typed(node, found if whole else found[position])
    elif isinstance(node.target, torch._ops.OpOverload) and op_name(node) == aten.FEATURES:
        _, shape, _, position = node.args
        label = label_of(node, aten.FEATURES)
        importer.values[node] = importer.builder.input(label, position, tuple(shape))  # type: ignore
    elif isinstance(node.target, torch._ops.OpOverload):
        result = _operator(importer, node, op_name(node), importer.values_of(bind(node)))
        importer.values[node] = _typed(node, result)
    elif "functorch" in getattr(node.target, "__module__", ""):
        importer.refuse(
            node,
            "torch.func or torch.vmap inside forward has no rule",
            DERIVED,
        )
    else:
        importer.refuse(node, f"{node.target} has no rule", "compute it outside the network")


def stand_in(importer: Importer, node: fx.Node) -> Activation | Refused:
    """For the result of an operator that was refused, so that what follows it is looked at too."""
    try:
        shapes = importer.sample_shapes(node)
    except (TraceError, AttributeError, TypeError):
        return Refused()
    single = isinstance(node.meta["val"], torch.Tensor)
    if not single or node.meta["val"].dtype != importer.builder.dtype:
        return Refused()
    return importer.builder.input(label_of(node, "refused"), -1, shapes[0])


def _operator(importer: Importer, node: fx.Node, name: str, args: Args) -> Any:
    values = list(values_in(args))
    if name in aten.ASSERTS:
        return None
    if any(isinstance(value, Refused) for value in values):
        return Refused()
    if aten.is_random(node.target, args) and name != "scaled_dot_product_attention":
        importer.refuse_known(node, name)
        importer.refuse(node, f"{name} cannot be compiled: {aten.RANDOM}", "draw them outside")
    active = any(isinstance(value, Activation | Condition) for value in values)
    if name == aten.MASKS and not active:
        importer.refuse(
            node,
            "dropout in training mode of what does not depend on the network's input: one draw would be "
            "that of all samples",
            "drop features of samples, or call .eval() on it",
        )
    if name in aten.CREATORS:
        made = on_constants(importer, node, args, lambda _: name)
        return replace(made, literal=_literal(made)) if isinstance(made, Constant) else made
    varying = next((value for value in values if isinstance(value, Varying)), None)
    if active and varying is not None:
        importer.refuse_varying(node, varying)
    turned = [value for value in values if isinstance(value, Turned)]
    if active or any(isinstance(value.value, Activation) for value in turned):
        if turns(importer, node, name, args):
            return moved(importer, node, args)
        if turned:
            importer.refuse_mixing(node)
    if active and any(isinstance(value, OfParameters) for value in values):
        at = "weight" if name in aten.CONVOLUTIONS else affine.WEIGHTS.get(name)
        rest = {key: value for key, value in args.items() if key != at}
        args = {**args, **computed.as_rows(importer, node, rest)}
    elif any(isinstance(value, OfParameters) for value in values):
        return OfParameters(label_of(node, op_name(node)), node)
    if active and not (name in aten.SHAPED_AS and isinstance(args["self"], Weight | Constant)):
        return _on_activations(importer, node, name, args)
    if len(values) == 1 and isinstance(values[0], Weight):
        result = on_constants(importer, node, args, lambda _: name)
        known = isinstance(result, Constant)
        view = affine.view_of_weight(values[0], name, result.tensor) if known else None
        if view is not None:
            return view
    if any(isinstance(v, Shared) or (isinstance(v, Weight) and v.trainable) for v in values):
        return on_shared(importer, node, name, args)
    return _on_constants(importer, node, name, args)


def _on_activations(importer: Importer, node: fx.Node, name: str, args: Args) -> Any:
    importer.refuse_known(node, name)
    if not aten.is_known(name):
        importer.refuse(
            node,
            f"the operator {node.target} is not supported",
            f"write it with supported operators ({aten.supported()})",
        )
    if name == "batch_norm":
        return special.batch_norm(importer, node, args)
    shapes = importer.sample_shapes(node)
    for argument, symbolic in symbolic_numbers(args):
        if name not in aten.ALIASES and not is_batch_size(importer, argument, symbolic):
            importer.refuse_number(node, symbolic)
    if name in aten.COMPARISONS:
        rule, positive = aten.COMPARISONS[name]
        return Condition(importer.pointwise(node, name, args, shapes[0], rule), positive)
    if name in aten.ALIASES:
        return reshaped(next(values_in(args)), shapes[0])
    if name in RULES:
        return RULES[name](importer, node, args, shapes[0])
    _check_dtype(importer, node, args)
    if name in aten.LOGICAL:
        special.require_masks(importer, node)
    if name in aten.BILINEAR and len(activations_in(args)) > 1:
        return bilinear.product(importer, node, name, args, shapes[0])
    if name == "bilinear":
        return affine.bilinear_layer(importer, node, args, shapes[0])
    if name == "scaled_dot_product_attention":
        return bilinear.attention(importer, node, args, shapes[0])
    if name in normalising.RULES:
        return normalising.RULES[name](importer, node, args, shapes[0])
    if name == "div" and (unit := normalising.unit_length(importer, node, args)) is not None:
        return unit
    if name in aten.PRODUCTS:
        return affine.product(importer, node, name, args, shapes[0])
    if name == "add" and (whole := affine.with_trailing_bias(importer, node, args)) is not None:
        return whole
    if name in aten.POINTWISE:
        return importer.pointwise(node, name, args, shapes[0])
    if name in aten.SELECTING:
        return structural.selection(importer, node, name, args, shapes)
    return structural.linear_operator(importer, node, name, args, shapes[0])


def _on_constants(importer: Importer, node: fx.Node, name: str, args: Args) -> Any:
    """Compute at once what does not depend on the input."""
    values = [value for value in values_in(args) if not isinstance(value, Varying)]
    alias = name in aten.ALIASES and len(values) == 1
    label = values[0].name if alias else "_".join([*(v.name for v in values[:1]), name])  # type: ignore[union-attr]
    literal = getattr(values[0], "literal", None) if alias else None
    made = on_constants(importer, node, args, lambda i: label if i is None else f"{label}_{i}")
    return replace(made, literal=literal) if isinstance(made, Constant) else made


def _typed(node: fx.Node, value: Any) -> Any:
    """An activation with the mark that it is of whole numbers, or not."""
    if not isinstance(value, Activation):
        return value
    return replace(value, whole=_is_whole(node.meta["val"].dtype))


def _is_whole(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _check_dtype(importer: Importer, node: fx.Node, args: Args) -> None:
    result = node.meta["val"]
    dtype = (result if isinstance(result, torch.Tensor) else result[0]).dtype
    given = [v for v in values_in(args) if isinstance(v, Activation)]
    if _is_whole(dtype) and given and all(v.whole for v in given):
        return  # whole numbers of whole numbers, held exactly
    mask = dtype == torch.bool and (
        op_name(node) in aten.SELECTING or op_name(node) in aten.LOGICAL
    )
    if dtype != importer.builder.dtype and not mask:
        masks = not dtype.is_floating_point and any(
            source.meta["val"].dtype == torch.bool
            for source in node.all_input_nodes
            if isinstance(source.meta.get("val"), torch.Tensor)
        )
        importer.refuse(
            node,
            f"{op_name(node)} gives {dtype}, while the network's input is {importer.builder.dtype}",
            "combine masks with & and |, and count with (h > 0).to(h.dtype)"
            if masks
            else "keep one floating-point dtype throughout the network",
        )


def _literal(constant: Constant) -> float | None:
    """The one number that a creator fills its result with."""
    tensor = constant.tensor
    return float(tensor.reshape(-1)[0]) if tensor.numel() and not tensor.is_complex() else None
