"""What is computed of trainable parameters alone, by any operators: a network of its own.

The operators between the parameters and such a value run as they are, for a batch of parameters
(``torch.vmap``), and what they do is traced like any network
(:mod:`gncompile.graph.computed`). It is made only where an activation meets the value.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import GncompileError
from ..graph.computed import Computed
from ..graph.nodes import FixedLinear, Node, Pointwise
from .fx_nodes import label_of, op_name, origin_of
from .importer import Importer
from .values import OfParameters, Shared, Weight


def layer_weight(importer: Importer, node: fx.Node, value: Any) -> Weight:
    """An argument of ``node`` as the weight of a layer, which is no parameter itself."""
    source = next(n for n in node.all_input_nodes if importer.values[n] is value)
    transposed = False
    while op_name(source) in _TRANSPOSED and source.meta["val"].ndim == 2:
        (source,), transposed = source.all_input_nodes, not transposed
    found = OfParameters(label_of(source, source.name), source)
    made = _computed(importer, node, found)
    return Weight(found.name, _like(found, importer), transposed, made)


def shared(importer: Importer, node: fx.Node, value: OfParameters) -> Shared:
    """``value`` as a row that all samples share."""
    made = _computed(importer, node, value)
    size, origin = math.prod(value.shape), origin_of(value.node)
    row = importer.builder.computed_row(value.name, made, size, origin)
    return Shared(row.name, value.shape)


def as_rows(importer: Importer, node: fx.Node, value: Any) -> Any:
    """Arguments with a row in the place of every value computed of parameters."""
    if isinstance(value, OfParameters):
        return shared(importer, node, value)
    if isinstance(value, dict):
        return {key: as_rows(importer, node, item) for key, item in value.items()}
    return [as_rows(importer, node, item) for item in value] if isinstance(value, list) else value


def _computed(importer: Importer, node: fx.Node, value: OfParameters) -> Computed:
    """The network from the parameters to ``value``, whose tensors are registered."""
    nodes = _behind(value.node)
    known = {n: importer.values[n] for n in nodes if not _is_call(n)}
    trained = [n for n, x in known.items() if isinstance(x, Weight) and x.trainable]
    examples = tuple(known[n].parameter.detach() for n in trained)
    try:
        traced = importer.trace(*_batched(_Function(nodes, known, trained), examples))
    except (GncompileError, RuntimeError) as error:
        found = str(error).splitlines()[0]
        importer.refuse(
            node,
            f"{value.name} is computed of trainable parameters by what has no rule: {found}",
            "compute it of activations, or freeze the parameters with requires_grad_(False)",
        )
    pairs = zip(trained, traced.graph.inputs, strict=True)
    if idle := [known[n].name for n, x in pairs if not traced.graph.consumers(x.name)]:
        importer.refuse(
            node,
            f"{value.name} does not depend on the trainable parameters {', '.join(idle)}",
            "freeze them with requires_grad_(False), or leave them out",
        )
    for n in trained:
        importer.builder.parameters[known[n].name] = known[n].parameter
    names = {
        name: importer.builder.constant(f"{value.name}_{name}", tensor)
        for name, tensor in traced.constants.items()
    }
    graph = traced.graph.replace(*(_with_constants(each, names) for each in traced.graph))
    return Computed(tuple(graph), tuple(known[n].name for n in trained))


def _like(value: OfParameters, importer: Importer) -> Tensor:
    """A tensor of the weight's shape, to read that from."""
    return torch.empty(value.shape, dtype=importer.builder.dtype, device="meta").requires_grad_()


def _batched(
    function: nn.Module, sample: tuple[Tensor, ...]
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The function of several samples at once, and some."""
    sizes = {size for each in sample for size in each.shape}
    batch = next(
        n for n in itertools.count(2) if n not in sizes
    )  # or export takes one for the other
    several = tuple(each.expand(batch, *each.shape).contiguous() for each in sample)
    made = make_fx(torch.vmap(function), tracing_mode="symbolic", _allow_non_fake_inputs=True)
    module = made(*several)
    module.graph.eliminate_dead_code()  # of what torch.vmap only looks at
    module.recompile()
    return module, several


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_function"


def _behind(node: fx.Node) -> list[fx.Node]:
    """The nodes that ``node`` is computed of, in order, and itself."""
    found, todo = {node}, [node]
    while todo:
        new = [n for n in todo.pop().all_input_nodes if n not in found]
        found.update(new)
        todo.extend(new)
    return [n for n in node.graph.nodes if n in found]


class _Function(nn.Module):
    """The operators of ``nodes`` as a function of the parameters in ``trained``; the rest is held."""

    def __init__(
        self, nodes: list[fx.Node], known: Mapping[fx.Node, Any], trained: list[fx.Node]
    ) -> None:
        super().__init__()
        self.nodes, self.trained = nodes, trained
        self.held = {n: x.tensor for n, x in known.items() if n not in trained}

    def forward(self, *parameters: Tensor) -> Tensor:
        values: dict[fx.Node, Any] = {
            **self.held,
            **dict(zip(self.trained, parameters, strict=True)),
        }
        for node in filter(_is_call, self.nodes):
            args, keywords = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            apply: Any = WRITTEN_OUT.get(op_name(node), node.target)
            values[node] = apply(*args, **keywords)
        result: Tensor = values[self.nodes[-1]]
        return result


_TRANSPOSED = ("t", "numpy_T", "mT")
"""Operators that give a matrix as its transpose, which a layer takes as it lies in memory."""


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """``g v / ‖v‖``, the norm over all dimensions but one, or over all of them for -1."""
    others = [d for d in range(v.ndim) if dim == -1 or d != dim % v.ndim]
    length: Tensor = v.square().sum(others, keepdim=True).sqrt()
    return v * (g / length)


WRITTEN_OUT: Mapping[str, Callable[..., Any]] = {
    "_weight_norm": _weight_norm,
    "_weight_norm_interface": lambda v, g, dim=0: (_weight_norm(v, g, dim),),
    "mv": lambda m, v: (m * v).sum(-1),
    "dot": lambda u, v: (u * v).sum(-1),
    "vdot": lambda u, v: (u * v).sum(-1),
}
"""Operators that ``torch.vmap`` has no rule for, or one that puts the batch elsewhere than in front."""


def _with_constants(node: Node, names: Mapping[str, str]) -> Node:
    """The node with its constants under other names."""
    if isinstance(node.op, FixedLinear):
        return replace(node, op=replace(node.op, matrix=names[node.op.matrix]))
    if isinstance(node.op, Pointwise):
        renamed = tuple((symbol, names[name]) for symbol, name in node.op.constants)
        return replace(node, op=replace(node.op, constants=renamed))
    return node
