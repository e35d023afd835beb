"""Evaluate a traced model's graph in float64, with code that shares nothing with the compiler's emitters."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import sympy
import torch
from torch import Tensor

from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import ModelGraph, TracedModel
from gncompile.graph.nodes import FixedLinear, Input, Node, Output, Pointwise, Select

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softplus": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "select": lambda c, u, v: torch.where(c > 0, u, v),
    "Add": lambda *terms: sum(terms[1:], start=terms[0]),
    "Mul": lambda *factors: math.prod(factors[1:], start=factors[0]),
    "Pow": torch.pow,
    "Abs": torch.abs,
}


def value_of(expression: sympy.Expr, symbols: Mapping[sympy.Symbol, Tensor]) -> Tensor:
    """The expression in float64; names without an entry above are torch's own."""
    if expression.is_number:
        return torch.tensor(float(expression), dtype=torch.float64)
    if isinstance(expression, sympy.Symbol):
        return symbols[expression]
    name = type(expression).__name__
    function = FUNCTIONS.get(name) or getattr(torch, name)
    return function(*[value_of(part, symbols) for part in expression.args])


def evaluate(model: TracedModel, *inputs: Tensor) -> Tensor:
    """The network's output ``[N, *shape]`` for float64 ``inputs``."""
    values: dict[str, Tensor] = {}
    for node in model.graph:
        values[node.name] = _value(model, node, values, inputs)
    return values[model.graph.output.name].reshape(-1, *model.graph.output.shape)


def _value(
    model: TracedModel, node: Node, values: dict[str, Tensor], inputs: tuple[Tensor, ...]
) -> Tensor:
    op, args = node.op, [values[name] for name in node.inputs]
    if isinstance(op, Input):
        return inputs[op.position].reshape(len(inputs[0]), -1).double()
    if isinstance(op, Affine):
        y = args[0] @ model.parameters[op.weight].detach().double().T
        return y + model.parameters[op.bias].detach().double() if op.bias else y
    if isinstance(op, FixedLinear):
        return args[0] @ model.constants[op.matrix].double().T
    if isinstance(op, Select):
        index = torch.tensor(op.index)
        taken = torch.cat(args, 1)[:, index.clamp(min=0)]
        return torch.where(index < 0, torch.tensor(op.fill, dtype=torch.float64), taken)
    if isinstance(op, Pointwise):
        symbols = dict(zip(op.arguments, args, strict=True))
        symbols |= {symbol: model.constants[name].double() for symbol, name in op.constants}
        return value_of(op.expression, symbols).expand_as(args[0])
    assert isinstance(op, Output)
    return args[0]


def operations(graph: ModelGraph) -> list[str]:
    """The kinds of node in order, inputs and output left out: ``["Affine", "Pointwise"]``."""
    kinds = [type(node.op).__name__ for node in graph]
    return [kind for kind in kinds if kind not in ("Input", "Output")]
