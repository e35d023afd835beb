"""Steps that bend with the outputs: the geodesic acceleration of Levenberg and Marquardt's method.

Along a step v the outputs are ``z + t J v + ½ t² z″ + …``. Gauss and Newton's model knows no z″; what it adds
to the loss's gradient a second solution with the same matrix takes back::

    (G + D) a = −(1/N) Jᵀ 𝓗_L z″        z″ = (z(θ + h v) − 2 z(θ) + z(θ − h v)) / h²

and ``v + ½ a`` follows the curve on which the outputs go straight on [Transtrum and Sethna, Improvements to
the Levenberg-Marquardt algorithm, 2012, arXiv:1201.5885]. Along narrow, bent valleys, where
straight steps have to be short, it takes fewer Jacobians, for two forward passes each (docs/solvers.md).

Where ``‖a‖ > α ‖v‖`` in the norm of D the expansion says nothing, and the step stays straight; so it does
where z″ is rounding. The decrease that the quadratic model predicts is v's.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy

from ..functions.primitives import as_float, select
from ..program import operations as ir
from ..program.builder import Value
from .damping import noticed
from .forward import Forward
from .optimiser import Optimiser

PROBE = 0.1
"""h, the part of a step at which outputs are looked at: neither 0.03 nor 0.3 takes fewer steps."""

a, b, c = sympy.symbols("a b c", real=True)


class ProbedForward(Forward):
    """The forward pass at other parameters, given by name."""

    def __init__(self, forward: Forward, moved: Mapping[str, Value]) -> None:
        super().__init__(forward.builder, forward.graph, {})
        self._moved = moved

    def parameter(self, name: str, shape: tuple[int, ...]) -> Value:
        return self._moved[name] if name in self._moved else super().parameter(name, shape)


def second_change(optimiser: Optimiser, forward: Forward, steps: Mapping[str, Value]) -> Value:
    """``h² z″`` along steps by layer: ``[N, K]``; 0 where all of it is rounding."""
    builder = optimiser.builder
    ahead, behind = (_output_at(optimiser, forward, steps, h) for h in (PROBE, -PROBE))
    with forward.work_at_output():
        values = {a: ahead, b: behind, c: forward.output}
        change = builder.pointwise((a - c) + (b - c), values, name="difference")
        squares = [builder.emit(ir.Dot(), x, x, name="square") for x in (ahead, behind, change)]
        values = dict(zip((a, b, c), squares, strict=True))
        whole = builder.pointwise(sympy.sqrt(a + b), values, name="outputs_norm")
        part = builder.pointwise(sympy.sqrt(c), values, name="difference_norm")
        seen = noticed(optimiser, whole, part, "difference_noticed")
        values = {a: change, b: seen}
        return builder.pointwise(select(b, a, sympy.Integer(0)), values, name="second_change")


def _output_at(
    optimiser: Optimiser, forward: Forward, steps: Mapping[str, Value], h: float
) -> Value:
    """z at ``θ + h v``."""
    moved: dict[str, Value] = {}
    for layer, step in optimiser.builder.layerwise(steps):
        names, pairs = optimiser.layers[layer].parameters, optimiser.pairs(layer, step)
        for name, (parameter, change) in zip(names, pairs, strict=True):
            values = {a: parameter, b: change}
            moved[name] = optimiser.builder.pointwise(a + as_float(h) * b, values, name="probed")
    return ProbedForward(forward, moved).filled().output


def bent(
    optimiser: Optimiser, steps: Mapping[str, Value], answer: Mapping[str, Value]
) -> dict[str, Value]:
    """``½ a`` by layer where it is to be added to ``steps``, else 0; ``answer`` is ``h² a``."""
    builder, bound = optimiser.builder, optimiser.settings.acceleration
    assert bound is not None
    lengths = [
        optimiser.scaled_inner(each, each, name)
        for each, name in ((steps, "velocity_square"), (answer, "acceleration_square"))
    ]
    small = as_float((bound * PROBE**2) ** 2) * a - b
    bends = builder.pointwise(small, {a: lengths[0], b: lengths[1]}, name="bends")
    half = select(b, as_float(0.5 / PROBE**2) * a, sympy.Integer(0))
    return {
        layer: builder.pointwise(half, {a: value, b: bends}, name=f"half_a_{layer}")
        for layer, value in builder.layerwise(answer)
    }
