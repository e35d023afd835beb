"""The dampings λ and γ after a step, by how much of its predicted change came true.

``ρ = (E(θ+δ) − E(θ)) / predicted`` on the step's own batch. Levenberg and Marquardt's rule [MG §6.5]: λ falls
where ρ > ¾ and rises where ρ < ¼, by ``ω^T`` every T steps. In the first steps, when the right λ may be a
thousand times smaller or larger than the initial one, each step is judged, on the factors' share of its
batch, λ is halved or doubled, and γ goes with it as ½√λ; later γ is chosen by the quadratic model
(``choose_factor_damping``).

On the step's own batch ρ is near 1 however much of the step follows this batch's noise, and the predicted
change is the larger the smaller the damping. So where the averaged parameters are better than the latest,
which is due to noise, λ is held at a few percent of the curvature along a step.

A step that raised the loss is undone: the quadratic model was wrong by more than its size.
"""

from __future__ import annotations

import math

import sympy

from ..base.settings import Settings
from ..functions.primitives import as_float, clamp, finite, select
from ..program import operations as ir
from ..program.builder import Value
from .lengths import leeway
from .optimiser import CHOSEN, FACTORS, Optimiser

FELT = 0.01
"""λ's share of the curvature along a step below which λ does not fall further."""
LEADING = 0.9
"""λ's share of the curvature along a step above which it does not rise further, unless the step is undone."""
HELD = 0.05
"""The share of λ below which it is doubled where the averaged parameters are better."""
SEARCH = 0.5
"""λ's factor in the first steps."""
TRIED = 0.5
"""γ's factor r where γ, γ r and γ/r are tried: halved, kept or doubled, as the quadratic model judges."""
UNDONE = 4.0
"""λ's factor after a step that was undone or could not be taken; γ's is its root."""
ROUNDING = 1e-5
"""A loss rises where it does by more than this part of itself; less may be rounding."""

NOTICED = 1 / 16
"""A change is more than rounding where so small a part of it still alters what it is added to."""

JUDGED = ("rho", "measured", "harm")
"""States that :func:`judge` writes."""

a, b, c, d, measured, rho = sympy.symbols("a b c d measured rho", real=True)


def judge(optimiser: Optimiser, before: Value, after: Value) -> None:
    """States ``rho``, and ``harm``: whether the objective rose by the step, or is not finite any more.

    The state ``measured`` tells whether ρ means anything: whether the predicted change is more than the
    rounding of the loss, and the step more than that of the parameters. Where it is not, ρ is 0.
    """
    builder = optimiser.builder
    values = {a: after, b: before}
    predicted = optimiser.chosen(CHOSEN["predicted"])
    moved = noticed(optimiser, before, predicted, "change_noticed")
    steps = [_step_noticed(optimiser, layer) for layer in optimiser.layers]
    any_step = builder.add(*steps, name="steps_noticed")
    is_measured = builder.pointwise(
        select(finite(a), select(b, select(c, sympy.Integer(1), 0), 0), sympy.Integer(1)),
        {a: after, b: moved, c: any_step},
        into=optimiser.measured,
        name="measured_now",
    )
    builder.pointwise(
        select(measured * finite(a), (a - b) / c, sympy.Integer(0)),
        {**values, c: predicted, measured: is_measured},
        into=optimiser.scalar("rho"),
        name="rho_now",
    )
    rise = a - b - as_float(ROUNDING) * sympy.Abs(b)
    if optimiser.settings.damping_tries > 1:
        rise, values = select(measured, a - b, rise), {**values, measured: is_measured}
    harm = select(rise, sympy.Integer(1), 1 - finite(a))
    builder.pointwise(harm, values, into=optimiser.scalar("harm"), name="harm_now")


def noticed(optimiser: Optimiser, value: Value, change: Value, name: str) -> Value:
    """Positive where a part of ``change`` alters ``value``; the sum is a value of its own, and rounded."""
    builder = optimiser.builder
    moved = builder.pointwise(
        a + as_float(NOTICED) * b, {a: value, b: change}, name=f"{value.name}_moved"
    )
    return builder.pointwise(sympy.Abs(b - a), {a: value, b: moved}, name=name)


def _step_noticed(optimiser: Optimiser, layer: str) -> Value:
    """Positive where the last step moves a layer's W̄ by more than its rounding, norm by norm."""
    builder = optimiser.builder
    node = optimiser.layers[layer].node.name
    parts = [
        builder.emit(ir.Dot(), p, p, name=f"square_{node}") for p in optimiser.parameters_of(layer)
    ]
    square = builder.add(*parts, name=f"square_{node}")
    step = optimiser.last_step(layer)
    step_square = builder.emit(ir.Dot(), step, step, name=f"step_square_{node}")
    norm, step_norm = (
        builder.pointwise(sympy.sqrt(a), {a: v}, name=name)
        for v, name in ((square, f"norm_{node}"), (step_square, f"step_norm_{node}"))
    )
    return noticed(optimiser, norm, step_norm, f"step_noticed_{node}")


def adapt(optimiser: Optimiser) -> None:
    """``λ ← λ ω^T`` or ``λ / ω^T``.

    It falls only while it is felt, ``λ‖δ‖² > FELT · δᵀ(G + λI)δ``: below, steps would stay as they are,
    and λ would be long in rising again. It rises only while it does not lead, ``λ‖δ‖² < LEADING · δᵀ(G +
    λI)δ``: a step along the gradient, too short for any curvature, whose loss does not fall as predicted
    tells of rounding, as where all targets are met but for that, and λ would be long in falling again.
    """
    settings = optimiser.settings
    _change(optimiser, as_float(settings.damping_rate**settings.damping_period))


def search(optimiser: Optimiser) -> None:
    """λ halved or doubled, and γ = ½ √λ."""
    now = _change(optimiser, as_float(SEARCH))
    optimiser.write(
        optimiser.factor_damping, as_float(FACTORS) * sympy.sqrt(a), {a: now}, "gamma_now"
    )


def hold(optimiser: Optimiser, better: Value) -> None:
    """``λ ← 2 λ`` while ``λ‖δ‖² < HELD · δᵀ(G + λI)δ``, if ``better`` is positive."""
    doubled = _bounded(optimiser, 2 * a)
    now = select(d, select(as_float(HELD) * c - a * b, doubled, a), a)
    values = {**_felt(optimiser), d: better}
    optimiser.write(optimiser.damping, now, values, "damping_now")


def _felt(optimiser: Optimiser) -> dict[sympy.Symbol, Value]:
    """a: λ, b: ``‖δ‖²`` and c: ``δᵀ(G + λI)δ`` of the last step."""
    steps = {layer: optimiser.last_step(layer) for layer in optimiser.layers}
    length = optimiser.chosen(CHOSEN["length"])
    squared = optimiser.scaled_inner(steps, steps, "squared_step")
    return {a: optimiser.damping, b: squared, c: length}


def _change(optimiser: Optimiser, factor: sympy.Expr) -> Value:
    quarter, three_quarters = sympy.Rational(1, 4), sympy.Rational(3, 4)
    lower = select(a * b - as_float(FELT) * c, a * factor, a)
    higher = select(as_float(LEADING) * c - a * b, a / factor, a)
    changed = select(rho - quarter, select(rho - three_quarters, lower, a), higher)
    changed = select(measured, changed, a)
    states = {rho: optimiser.scalar("rho"), measured: optimiser.measured}
    values = {**_felt(optimiser), **states}
    return optimiser.write(optimiser.damping, _bounded(optimiser, changed), values, "damping_now")


def reject(optimiser: Optimiser, where: Value | None = None) -> None:
    """After a step that cannot be taken, if ``where`` is positive: ``λ ← 4 λ, γ ← 2 γ``, no momentum."""
    raised = _bounded(optimiser, as_float(UNDONE) * a)
    gamma = bounded_factor(optimiser, as_float(UNDONE**0.5) * a)
    changes = [
        (optimiser.damping, raised, "damping_now"),
        (optimiser.factor_damping, gamma, "gamma_now"),
    ]
    if optimiser.settings.step_growth is not None:
        changes.append((leeway(optimiser), sympy.Integer(1), "no_leeway"))
    for state, now, name in changes:
        values = {a: state}
        if where is not None:
            now, values = select(d, now, a), {a: state, d: where}
        optimiser.builder.pointwise(now, values, into=state, name=name)
    optimiser.forget_step(where)


def bounded_factor(optimiser: Optimiser, gamma: sympy.Expr) -> sympy.Expr:
    """γ between the values of ``½√λ`` at λ's bounds."""
    low, high = factor_bounds(optimiser.settings)
    return clamp(gamma, as_float(low), as_float(high))


def factor_bounds(settings: Settings) -> tuple[float, float]:
    """The least and the greatest γ."""
    low, high = (FACTORS * math.sqrt(bound) for bound in settings.damping_bounds)
    return low, high


def _bounded(optimiser: Optimiser, changed: sympy.Expr) -> sympy.Expr:
    low, high = (as_float(x) for x in optimiser.settings.damping_bounds)
    return select(changed - high, high, select(low - changed, low, changed))
