"""The first-order rule of parameters that no curvature rule covers: Adam's diagonal.

::

    v ← β v + (1 − β) ∇ ⊙ ∇        Δ = −∇ / (√(v / (1 − βᵏ)) + ε)        at the k-th update

That is Adam [Kingma and Ba, 2015] without its running mean and its learning rate: the quadratic model
gives Δ a step size of its own, beside that of the layers with factors and that of the last step δ, with the
true Gauss-Newton curvature along all three (``steps.py``). Refusals, undo, averages and L2 are those of
every layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from ..functions.primitives import as_float
from ..program.builder import Value
from ..program.specs import Spec
from .optimiser import Optimiser

BETA, EPSILON = 0.999, 1e-8
"""Adam's own."""

g, k, v = sympy.symbols("g k v", real=True)


class FirstOrder:
    """Directions of the parameters in ``graph.first_order``; without any it emits nothing."""

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser, self.builder = optimiser, optimiser.builder
        self.layers = optimiser.forward.graph.first_order

    def prepare(self, gradients: Mapping[str, Value]) -> None:
        """The running mean square of each gradient, in the phase ``first_order``."""
        if not self.layers:
            return
        with self.builder.phase("first_order"):
            count = self.optimiser.scalar("first_order_updates")
            self.optimiser.write(count, k + 1, {k: count}, "first_order_updates_now")
            for layer, gradient in self.builder.layerwise(self._own(gradients)):
                state, beta = self._square(layer), as_float(BETA)
                mean = beta * v + (1 - beta) * g**2
                self.optimiser.write(state, mean, {v: state, g: gradient}, "square_now")

    def directions(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        """``Δ = −∇ / (√(v / (1 − βᵏ)) + ε)`` by parameter."""
        result = {}
        for layer, gradient in self.builder.layerwise(self._own(gradients)):
            count = self.optimiser.scalar("first_order_updates")
            mean = v / (1 - as_float(BETA) ** k)
            values = {g: gradient, v: self._square(layer), k: count}
            delta = -g / (sympy.sqrt(mean) + as_float(EPSILON))
            result[layer] = self.builder.pointwise(delta, values, name=f"delta_{layer}")
        return result

    def _own(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        return {layer: gradients[layer] for layer in self.layers}

    def _square(self, layer: str) -> Value:
        """v of a parameter, shaped like W̄."""
        return self.builder.state(f"square.{layer}", Spec(self.layers[layer].shape))
