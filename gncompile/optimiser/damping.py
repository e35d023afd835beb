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

from ..builder import Value
from ..functions import as_float, clamp, finite, select
from .phases import CHOSEN, FACTORS, Optimiser
from .settings import Settings

FELT = 0.01
"""λ's share of the curvature along a step below which λ does not fall further."""
HELD = 0.05
"""The share of λ below which it is doubled where the averaged parameters are better."""
SEARCH = 0.5
"""λ's factor in the first steps."""
UNDONE = 4.0
"""λ's factor after a step that was undone or could not be taken; γ's is its root."""
ROUNDING = 1e-5
"""A loss rises where it does by more than this part of itself; less may be rounding."""

NOTICED = 1 / 16
"""ρ is judged where so small a part of the predicted change still alters the loss it is added to."""

JUDGED = ("rho", "measured", "harm")
"""States that :func:`judge` writes."""

a, b, c, d, measured, rho = sympy.symbols("a b c d measured rho", real=True)


def judge(optimiser: Optimiser, before: Value, after: Value) -> None:
    """States ``rho``, and ``harm``: whether the objective rose by the step, or is not finite any more.

    The state ``measured`` tells whether ρ means anything: whether the loss is finite and the predicted
    change more than its rounding. ``before + part`` is a value of its own, so that it is rounded.
    """
    builder = optimiser.builder
    values = {a: after, b: before}
    predicted = optimiser.chosen(CHOSEN["predicted"])
    shifted = {b: before, c: predicted}
    moved = builder.pointwise(b + as_float(NOTICED) * c, shifted, name="objective_moved")
    is_measured = builder.pointwise(
        select(sympy.Abs(c - b), finite(a), sympy.Integer(0)),
        {**values, c: moved},
        into=optimiser.scalar("measured"),
        name="measured_now",
    )
    builder.pointwise(
        select(measured, (a - b) / c, sympy.Integer(0)),
        {**values, c: predicted, measured: is_measured},
        into=optimiser.scalar("rho"),
        name="rho_now",
    )
    rise = a - b - as_float(ROUNDING) * sympy.Abs(b)
    harm = select(rise, sympy.Integer(1), 1 - finite(a))
    builder.pointwise(harm, values, into=optimiser.scalar("harm"), name="harm_now")


def adapt(optimiser: Optimiser) -> None:
    """``λ ← λ ω^T`` or ``λ / ω^T``.

    It falls only while it is felt, ``λ‖δ‖² > FELT · δᵀ(G + λI)δ``: below, steps would stay as they are,
    and λ would be long in rising again.
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
    return {a: optimiser.damping, b: optimiser.inner(steps, steps), c: length}


def _change(optimiser: Optimiser, factor: sympy.Expr) -> Value:
    quarter, three_quarters = sympy.Rational(1, 4), sympy.Rational(3, 4)
    lower = select(a * b - as_float(FELT) * c, a * factor, a)
    changed = select(rho - quarter, select(rho - three_quarters, lower, a), a / factor)
    changed = select(measured, changed, a)
    states = {rho: optimiser.scalar("rho"), measured: optimiser.scalar("measured")}
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
        changes.append((optimiser.scalar("leeway", "one"), sympy.Integer(1), "no_leeway"))
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
