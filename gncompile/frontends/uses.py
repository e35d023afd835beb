"""How an exported program uses its parameters, found before it is translated.

A bias is trained together with its weight, as a column of ``W̄ = [W, b]``, where these two meet each other and
nothing else; otherwise it is a trainable vector of its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import SymInt, Tensor, fx

from . import aten
from .fx_nodes import bind, op_name

TRANSPOSITIONS = ("t", "transpose", "permute", "numpy_T", "mT", "swapaxes", "swapdims", "movedim")
"""Operators that may give a matrix as its transpose."""

_WEIGHTS = {
    "linear": ("weight", "bias", False),
    "addmm": ("mat2", "self", True),
    "mm": ("mat2", None, True),
    "matmul": ("other", None, True),
    "bilinear": ("weight", "bias", False),
    **{name: ("weight", "bias", name.startswith("conv_transpose")) for name in aten.CONVOLUTIONS},
}
"""Of each product the arguments of weight and bias, and whether the weight stands there transposed."""


_UNREAD = {*aten.CREATORS, *aten.SIZES, "embedding"}
"""Operators that do not read a weight, or as a layer does."""


class Uses:
    """The weights and biases that meet in products; ``parameters`` are the tensors behind placeholders."""

    def __init__(self, graph: fx.Graph, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._biases: dict[int, set[int | None]] = defaultdict(set)
        self._weights: dict[int, set[int]] = defaultdict(set)
        self._ways: dict[int, set[bool]] = defaultdict(set)
        self._otherwise: set[int] = set()
        self._elsewhere: set[int] = set()
        for node in graph.nodes:
            if node.op == "call_function" and hasattr(node.target, "_schema"):
                self._note(node)

    def homogeneous(self, weight: Tensor, bias: Tensor) -> bool:
        """Whether the bias is a column of the weight's W̄."""
        w, b = id(weight), id(bias)
        alone = self._biases[w] <= {b, None} and self._weights[b] == {w}
        return alone and b not in self._otherwise and len(self._ways[w]) == 1

    def elsewhere(self, weight: Tensor) -> bool:
        """Whether something is computed of the weight besides its products with activations."""
        return id(weight) in self._elsewhere

    def _note(self, node: fx.Node) -> None:
        found = self._product(node)
        if found is not None and not _of_samples(node):
            self._elsewhere |= {p[0] for n in node.all_input_nodes if (p := self._parameter(n))}
        if found is not None:
            weight, transposed, bias = found
            self._ways[weight].add(transposed)
            self._biases[weight].add(bias)
            if bias is not None:
                self._weights[bias].add(weight)
            return
        if self._trailing(node) or op_name(node) in aten.ALIASES or op_name(node) in TRANSPOSITIONS:
            return
        for source in node.all_input_nodes:
            if (parameter := self._parameter(source)) is not None:
                self._otherwise.add(parameter[0])
                if op_name(node) not in _UNREAD:
                    self._elsewhere.add(parameter[0])

    def _product(self, node: fx.Node) -> tuple[int, bool, int | None] | None:
        """The weight of a product, whether it stands there transposed, and the bias."""
        name = op_name(node)
        if name not in _WEIGHTS:
            return None
        args = bind(node)
        weight_name, bias_name, transposed = _WEIGHTS[name]
        weight = self._parameter(args[weight_name])
        if weight is None:
            return None
        bias = self._parameter(args[bias_name]) if bias_name else None
        transposed = args.get("transposed", transposed)
        return weight[0], weight[1] != transposed, None if bias is None else bias[0]

    def _trailing(self, node: fx.Node) -> bool:
        """Note ``x Wᵀ + b`` that is written with a plus."""
        if op_name(node) != "add" or len(node.all_input_nodes) != 2:
            return False
        for y, b in (node.all_input_nodes, node.all_input_nodes[::-1]):
            bias = self._parameter(b)
            product = self._product(y) if y.op == "call_function" and _is_operator(y) else None
            own = product is not None and product[2] is None and len(y.users) == 1
            if bias is not None and product is not None and own:
                self._biases[product[0]].add(bias[0])
                self._weights[bias[0]].add(product[0])
                return True
        return False

    def _parameter(self, node: Any) -> tuple[int, bool] | None:
        """The parameter that a node is, and whether it is transposed."""
        transposed = False
        while isinstance(node, fx.Node) and node.op == "call_function" and _is_operator(node):
            name = op_name(node)
            if name in TRANSPOSITIONS:
                transposed = not transposed
            elif name not in aten.ALIASES:
                return None
            node = node.args[0]
        if not isinstance(node, fx.Node) or node.name not in self._parameters:
            return None
        return id(self._parameters[node.name]), transposed


def _is_operator(node: fx.Node) -> bool:
    return hasattr(node.target, "_schema")


def _of_samples(node: fx.Node) -> bool:
    """Whether an operator's result has the batch as a dimension."""
    return any(isinstance(size, SymInt) for size in node.meta["val"].shape)
