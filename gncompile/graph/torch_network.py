"""A traced graph, and a loss, as plain torch functions: for ``torch.func`` to differentiate.

Nothing here uses a derived rule or the compiler's evaluator; that is what makes it a reference.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..functions.plain_torch import plain
from ..losses.targets import tensors_of
from ..losses.vocabulary import (
    OUTPUT,
    TARGET,
    CoupledLoss,
    Loss,
    SeparableLoss,
    SoftmaxCrossEntropy,
    SumLoss,
)
from ..losses.weighting import output_shape
from .computed import Computed
from .layers import LayerOp
from .model_graph import ModelGraph, TracedModel
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
        if self.traced.trunk is not None:
            inputs = self.traced.trunk(inputs)
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
                w = (
                    self._computed(node.op.computed, parameters)
                    if node.op.computed
                    else parameters[weight]
                )
                shape = node.op.matrix(node.size, [each.shape[1] for each in x])
                w = w.reshape(shape) if node.op.computed else w
                h = node.op.apply(w, None if bias is None else parameters[bias], *x)
                return h.expand(len(inputs[0]), -1)
            case FixedLinear(matrix, before, after):
                a = constants[matrix]
                places = x[0].reshape(-1, before, a.shape[1], after)
                return (a @ places).flatten(1)
            case Select(index, fill):
                padded = torch.cat([*x, x[0].new_full((x[0].shape[0], 1), fill)], dim=1)
                return padded[:, list(index)]
            case Pointwise(expression, arguments, named):
                values = dict(zip(arguments, x, strict=True))
                values |= {symbol: constants[name] for symbol, name in named}
                return plain(expression, values).expand(max(map(len, x)), node.size)
            case Output():
                return x[0]
        return node.op.plain(*x)

    def _computed(self, computed: Computed, parameters: Mapping[str, Tensor]) -> Tensor:
        """A weight that is computed of parameters, which are the one sample of a network."""
        graph = ModelGraph(list(computed.nodes))
        network = Network(replace(self.traced, graph=graph, trunk=None))
        sample = tuple(parameters[name].reshape(1, -1) for name in computed.parameters)
        return network({}, sample)[0]


def flat_output(z: Any) -> Tensor:
    """What a module returns as ``[N, K]``: one tensor, or a tuple, list or dict of them side by side."""
    return torch.cat(
        [
            each.flatten(start_dim=1) if each.dim() > 1 else each.reshape(-1, 1)
            for each in tensors_of(z)
        ],
        dim=1,
    )


def objective(loss: Loss, module: nn.Module | None) -> Callable[[Tensor, Any], Tensor]:
    """``Ē(z, y)`` of outputs ``[N, K]``: by the user's own loss module, or else by the loss's value alone."""

    def shape(z: Tensor) -> tuple[int, ...]:
        return output_shape(loss, z.shape[1])

    if module is not None:
        modules = {
            dtype: copy.deepcopy(module).to(dtype) for dtype in (torch.float32, torch.float64)
        }
        return lambda z, y: modules[z.dtype](
            z.reshape(-1, *shape(z)), *(y if isinstance(y, tuple) else (y,))
        )

    def value(z: Tensor, y: Any) -> Tensor:
        if type(loss) is SoftmaxCrossEntropy and loss == SoftmaxCrossEntropy(
            loss.name, loss.label_smoothing, loss.scale, classes=loss.classes
        ):
            entropy = nn.CrossEntropyLoss(reduction="sum", label_smoothing=loss.label_smoothing)
            return loss.scale.value(*z.shape) / z.shape[0] * entropy(z, y)
        return loss_of_rows(loss, z, loss.rows(y, shape(z), z.dtype))

    return value


def loss_of_rows(loss: Loss, z: Tensor, rows: Tensor) -> Tensor:
    """``Ē`` of outputs ``[N, K]`` and a target's rows."""
    widths = loss.layout(z.shape[1])
    columns = dict(zip(widths, rows.split(list(widths.values()), dim=1), strict=True))
    if isinstance(loss, SumLoss):
        outputs = z.split([term.size for term in loss.terms], dim=1)
        pairs = zip(loss.terms, outputs, strict=True)
        return sum(
            (loss_of_rows(t.loss, part, columns[t.key]) for t, part in pairs), z.new_zeros(())
        )
    y, elements = columns["y"], 1
    if isinstance(loss, SeparableLoss):
        values = {OUTPUT: z, TARGET: y}
        for symbol in loss.parameters:
            own = dict(loss.constants).get(symbol.name)
            values[symbol] = z.new_tensor(own.values) if own else columns[symbol.name]
        each = plain(loss.expression, values) * z.new_tensor(
            loss.weights.values if loss.weights else 1.0
        )
        elements = z.shape[1]
    elif isinstance(loss, CoupledLoss):
        each = plain(loss.expression, dict(zip((*loss.z, *loss.y), (*z.T, *y.T), strict=True)))[
            :, None
        ]
    else:
        elements, classes = loss.count, z.shape[1] // loss.count
        smoothing = loss.label_smoothing
        smooth = (1 - smoothing) * y.reshape(len(y), elements, classes) + smoothing / classes
        if loss.class_weights:
            smooth = smooth * z.new_tensor(loss.class_weights.values)
        log_p = z.reshape(len(z), classes, elements).log_softmax(dim=1)
        each = -(smooth * log_p.mT).sum(dim=2)
    each = each * columns.get("weight", 1.0)
    if loss.scale.of_batch:
        return loss.scale.factor * each.sum() / columns["divisor"].sum()
    return loss.scale.value(len(z), elements) * each.sum() / len(z)
