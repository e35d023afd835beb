"""A traced graph, and a loss, as plain torch functions: for ``torch.func`` to differentiate.

Nothing here uses a derived rule or the compiler's evaluator; that is what makes it a reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..functions.plain_torch import plain
from ..losses.vocabulary import OUTPUT, TARGET, CoupledLoss, Loss, SeparableLoss
from .layers import LayerOp
from .model_graph import TracedModel
from .nodes import FixedLinear, Input, Node, Output, Pointwise, Select


@dataclass(frozen=True)
class Network:
    """The graph as a plain function of parameters and flat inputs, differentiable by ``torch.func``."""

    traced: TracedModel

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        inputs: tuple[Tensor, ...],
        shifts: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """z ``[N, K]``. ``parameters`` replace the model's; ``shifts`` are added to nodes by name."""
        return self.values(parameters, inputs, shifts or {})[self.traced.graph.output.name]

    def values(
        self,
        parameters: Mapping[str, Tensor],
        inputs: tuple[Tensor, ...],
        shifts: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """Every node's value ``[N, size]``."""
        values: dict[str, Tensor] = {}
        every = {**self.traced.parameters, **parameters}
        for node in self.traced.graph:
            value = self._value(node, [values[name] for name in node.inputs], every, inputs)
            values[node.name] = value + shifts[node.name] if node.name in shifts else value
        return values

    def _value(
        self,
        node: Node,
        x: list[Tensor],
        parameters: Mapping[str, Tensor],
        inputs: tuple[Tensor, ...],
    ) -> Tensor:
        constants = self.traced.constants
        match node.op:
            case Input(position):
                return inputs[position]
            case LayerOp(_, weight, bias):
                h = node.op.apply(
                    parameters[weight], None if bias is None else parameters[bias], *x
                )
                return h.expand(len(inputs[0]), -1)
            case FixedLinear(matrix, places):
                return (x[0].unflatten(-1, (places, -1)) @ constants[matrix].T).flatten(-2)
            case Select(index, fill):
                padded = torch.cat([*x, x[0].new_full((x[0].shape[0], 1), fill)], dim=1)
                return padded[:, list(index)]
            case Pointwise(expression, arguments, named):
                values = dict(zip(arguments, x, strict=True))
                values |= {symbol: constants[name] for symbol, name in named}
                return plain(expression, values).expand_as(x[0])
            case Output():
                return x[0]
        return node.op.plain(*x)


def objective(loss: Loss, module: nn.Module | None) -> Callable[[Tensor, Tensor], Tensor]:
    """``Ē(z, y)``: by the user's own loss module, or else by the loss's value alone."""
    if module is not None:
        return lambda z, y: module(z, y)

    def value(z: Tensor, y: Tensor) -> Tensor:
        scale = loss.scale.value(*z.shape) / z.shape[0]
        if isinstance(loss, SeparableLoss):
            return scale * plain(loss.expression, {OUTPUT: z, TARGET: y}).sum()
        if isinstance(loss, CoupledLoss):
            columns = dict(zip((*loss.z, *loss.y), (*z.T, *y.T), strict=True))
            return scale * plain(loss.expression, columns).sum()
        smoothing = loss.label_smoothing
        entropy = nn.CrossEntropyLoss(reduction="sum", label_smoothing=smoothing)
        return scale * entropy(z, y)

    return value
