"""The step along Δ: its length by the quadratic model, and the update [MG §7]."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy

from ..functions.primitives import as_float
from ..program import operations as ir
from ..program.builder import Value
from .averages import LEADS
from .forward import Forward
from .lengths import allowed_length, note_length
from .loss_rules import LossRules
from .optimiser import CHOSEN, Optimiser
from .propagation import push_forward

MOST_APART = 32
"""Step sizes of layers at most: each costs an R-operator, two of them a product. Beyond, neighbours share."""

a, b, c, d = sympy.symbols("a b c d", real=True)


def quadratic(
    optimiser: Optimiser,
    forward: Forward,
    rules: LossRules,
    gradients: Mapping[str, Value],
    deltas: Mapping[str, Value],
    by_layer: bool = False,
    momentum: bool = True,
) -> None:
    """Step sizes c from the full Gauss-Newton quadratic ``bᵀc + ½ cᵀMc`` [MG §7], by R-operator.

    One for the direction Δ, one for the part of it that a first-order rule makes if there is such, and one
    for the last step δ; ``by_layer`` one for each layer's part of Δ, or in deep networks that of neighbours.
    Block-diagonal preconditioning lets all layers answer the same error at once; joint step sizes for
    the layers undo that.

    Where noise leads (``averages.py``) there is no momentum: it would carry the noise of one batch
    through many steps. The host runs a phase without it then (``momentum=False``, which saves δ's
    R-operator); a guarded program, whose phases do not wait for a number, bounds it by 0.
    """
    layers = optimiser.forward.graph.layers
    apart = [int(bool(layers) and layer not in layers) for layer in deltas]  # of first order
    groups = _by_layer(apart) if by_layer else tuple(apart)
    directions: list[dict[str, Value]] = [{} for _ in range(max(groups) + 1)]
    for group, (layer, delta) in zip(groups, deltas.items(), strict=True):
        directions[group][layer] = delta
    momentum = momentum and optimiser.settings.momentum
    if momentum:
        directions.append({layer: optimiser.last_step(layer) for layer in deltas})
    m, rhs = model(optimiser, forward, rules, gradients, directions)
    upper = [m[i][j] for i in range(len(m)) for j in range(i, len(m))]
    op = ir.StepSizes(groups, momentum, optimiser.settings.step_growth, optimiser.settings.step_cap)
    bounds = [allowed_length(optimiser)]
    if momentum and not by_layer and optimiser.settings.guarded and optimiser.settings.average:
        leads = {a: optimiser.scalar(LEADS)}
        bounds.append(optimiser.builder.pointwise(1 - a, leads, name="largest_momentum"))
    optimiser.builder.emit(op, *upper, *rhs, *bounds, into=optimiser.sizes, name="step_sizes_now")


def _by_layer(apart: Sequence[int]) -> tuple[int, ...]:
    """A group for each layer, or for neighbours of the same kind where they are more than the most."""
    count = len(apart)
    places = [(k * min(count, MOST_APART) // count, kind) for k, kind in enumerate(apart)]
    numbers = {place: number for number, place in enumerate(dict.fromkeys(places))}
    return tuple(numbers[place] for place in places)


def model(
    optimiser: Optimiser,
    forward: Forward,
    rules: LossRules,
    gradients: Mapping[str, Value],
    directions: list[dict[str, Value]],
) -> tuple[list[list[Value]], list[Value]]:
    """``M_ij = d_iᵀ(G + λI + η)d_j`` and ``b_i = d_iᵀ∇`` for directions ``ΔW̄`` by layer.

    The curvature G is that of the samples of ``forward`` and ``rules``.
    """
    tangents = [push_forward(forward, v, f"r{i + 1}") for i, v in enumerate(directions)]
    count = len(directions)
    m: list[list[Value]] = [[None] * count for _ in range(count)]  # type: ignore[list-item]
    for i in range(count):
        for j in range(i, count):
            with forward.work_at_output():
                product = rules.hessian_product(tangents[j])
            curvature = optimiser.builder.emit(
                ir.Dot(mean=True), tangents[i], product, name=f"curvature_{i + 1}_{j + 1}"
            )
            pair = f"{i + 1}_{j + 1}"
            m[i][j] = m[j][i] = _damped(optimiser, curvature, directions[i], directions[j], pair)
    return m, [optimiser.inner(v, gradients, f"slope_{i + 1}") for i, v in enumerate(directions)]


def _damped(
    optimiser: Optimiser,
    curvature: Value,
    v: Mapping[str, Value],
    w: Mapping[str, Value],
    pair: str,
) -> Value:
    """``curvature + Σ_layers (λ + η) vᵀw``; weight and bias have their own η, ``pair`` numbers v and w."""
    shared = [layer for layer in v if layer in w]
    if not shared:
        return curvature
    total = optimiser.builder.pointwise(
        a + b * c,
        {a: curvature, b: optimiser.damping, c: optimiser.scaled_inner(v, w, f"product_{pair}")},
        name=f"M_{pair}",
    )
    for layer in shared:
        etas = optimiser.etas(layer)
        for eta, which in zip(etas, ("weight", "bias"), strict=True):
            if eta:
                parts = [optimiser.part(which, layer, x[layer]) for x in (v, w)]
                dot = optimiser.builder.emit(ir.Dot(), *parts, name=f"product_{pair}_{which}")
                values = {a: total, b: dot}
                total = optimiser.builder.pointwise(
                    a + as_float(eta) * b, values, name=f"with_l2_{pair}"
                )
    return total


def update(optimiser: Optimiser, deltas: Mapping[str, Value]) -> None:
    """``δ ← c_l Δ_l + c_m δ`` for each layer l, ``θ ← θ + δ``; θ before it is kept for ``restore``."""
    for number, (layer, delta) in enumerate(optimiser.builder.layerwise(deltas)):
        step = optimiser.last_step(layer)
        values = {a: delta, b: optimiser.chosen(number)}
        expression = a * b
        if optimiser.settings.momentum:
            values |= {c: step, d: optimiser.chosen(CHOSEN["momentum"])}
            expression = a * b + c * d
        step = optimiser.write(step, expression, values, "step")
        for parameter, change in optimiser.pairs(layer, step):
            saved = optimiser.builder.state(f"last_good.{parameter.name}", parameter.spec)
            optimiser.write(saved, a, {a: parameter}, "saved")
            optimiser.write(parameter, a + b, {a: parameter, b: change}, "moved")
    note_length(optimiser)
    if optimiser.settings.guarded:
        optimiser.write(optimiser.unconfirmed, sympy.Integer(1), {}, "unconfirmed_now")
