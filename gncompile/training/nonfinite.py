"""Where a value that is not finite arises: the network evaluated node by node on a batch that failed.

Only what has failed comes here, so it may be slow: the graph is evaluated by plain torch, and of a chain of
pointwise functions every part, until one is not finite where what it was given is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import sympy
import torch
from torch import Tensor

from ..errors import BatchError
from ..functions.expressions import evaluate
from ..graph.layers import LayerOp
from ..graph.model_graph import TracedModel
from ..graph.nodes import FixedLinear, Node, Pointwise
from ..graph.torch_network import Network
from ..losses.vocabulary import Loss


@dataclass(frozen=True)
class Cause:
    """What is not finite and why, and the place in the user's model; what to do about it."""

    found: str
    where: str
    instead: str


def refuse_loss(
    loss_value: float,
    traced: TracedModel,
    loss: Loss,
    inputs: tuple[Tensor, ...],
    target: Tensor,
    about: str,
) -> NoReturn:
    """Raise :class:`BatchError` about a loss that is not finite; ``about`` names the step."""
    cause = first_cause(traced, loss, inputs, target)
    raise BatchError(
        f"the loss is {loss_value} on a batch of finite values\n{cause.found}",
        where=f"{cause.where}; {about}",
        instead=f"{cause.instead}; the step was refused, parameters are unchanged",
    )


def first_cause(
    traced: TracedModel, loss: Loss, inputs: tuple[Tensor, ...], target: Tensor
) -> Cause:
    """The first node in the graph's order with a value that is not finite, or else the loss."""
    with torch.no_grad():
        values = Network(traced).values({}, inputs, {})
        for node in traced.graph:
            if not torch.isfinite(values[node.name]).all():
                given = [values[name] for name in node.inputs]
                return Cause(
                    _explain(node, given, values[node.name], traced),
                    str(node.origin),
                    _remedy(node),
                )
    output = values[traced.graph.output.name]
    return Cause(
        f"the loss {loss.describe()!r} overflows or is undefined where the network's output is finite, "
        f"{_range(output)}, for targets {_range(target)}; or the L2 term does",
        "the loss",
        "check the scale of the targets and of the initial weights, and the range the loss is defined on",
    )


def _remedy(node: Node) -> str:
    if isinstance(node.op, LayerOp | FixedLinear):
        return "check the scale of the inputs and initial weights"
    return "keep the function's argument in its domain, by softplus or a clamp say, or scale the inputs"


def _explain(node: Node, given: list[Tensor], value: Tensor, traced: TracedModel) -> str:
    if isinstance(node.op, LayerOp):
        for name in (node.op.weight, node.op.bias):
            if name and not torch.isfinite(traced.parameters[name]).all():
                return f"the parameter {name!r} is {_count(traced.parameters[name])}"
        weights = traced.parameters[node.op.weight]
        scales = f"inputs {_range(*given)}, weights {_range(weights)}"
        return f"the layer {node.op.layer!r} is {_count(value)}: {scales}"
    if isinstance(node.op, Pointwise):
        values: dict[sympy.Symbol, Tensor] = dict(zip(node.op.arguments, given, strict=True))
        values |= {symbol: traced.constants[name] for symbol, name in node.op.constants}
        return _explain_part(node.op.expression, values)
    return f"{node.name} is {_count(value)}: inputs {_range(*given)}"


def _explain_part(whole: sympy.Expr, values: Mapping[sympy.Symbol, Tensor]) -> str:
    """The innermost part of an expression that is not finite though its own parts are."""
    for part in sympy.postorder_traversal(whole):
        if not isinstance(part, sympy.Expr) or not part.free_symbols:
            continue
        value = _value(part, values)
        if value is None or torch.isfinite(value).all():
            continue
        arguments = [arg for arg in part.args if isinstance(arg, sympy.Expr) and arg.free_symbols]
        inside = ", ".join(
            f"{argument} {_range(known)}"
            for argument in arguments or [part]
            if (known := _value(argument, values)) is not None
        )
        bad = ~torch.isfinite(value)
        row = int(bad.nonzero()[0][0]) if value.dim() else 0
        first = [
            f"{argument} = {float(known.expand_as(value)[bad][0]):.4g}"
            for argument in arguments
            if (known := _value(argument, values)) is not None
        ]
        at = f", the first at sample {row} where {', '.join(first)}" if first else ""
        return f"{part} is {_count(value)}, with {inside}{at}"
    return f"{whole} is not finite"


def _value(part: sympy.Expr, values: Mapping[sympy.Symbol, Tensor]) -> Tensor | None:
    """The value of a part, or None for one that is no function by itself."""
    try:
        value = evaluate(part, dict(values))
    except Exception:  # whatever an evaluator says of half an expression: others tell
        return None
    return value if isinstance(value, Tensor) else None


def _count(value: Tensor) -> str:
    bad = ~torch.isfinite(value)
    first = float(value[bad].reshape(-1)[0])
    return f"{first} in {int(bad.sum())} of {value.numel()} values"


def _range(*values: Tensor) -> str:
    finite = torch.cat([v[torch.isfinite(v)].reshape(-1) for v in values])
    if not len(finite):
        return "none of them finite"
    return f"from {float(finite.min()):.4g} to {float(finite.max()):.4g}"
