"""How long a step may be: a multiple of what is usual, and more where that has changed.

The squared length is ``max(cᵀMc, −bᵀc)``, twice the decrease that the quadratic model promises.
"""

from __future__ import annotations

import sympy

from ..functions.primitives import as_float, minimum, select
from ..program.builder import Value
from .optimiser import CHOSEN, Optimiser

USUAL = 0.9
"""Decay of the running mean of steps' squared lengths."""
LEEWAY = 2
"""How much longer than usual another step may be for each one before it that was shortened."""
MOST_LEEWAY = 1e30
"""A bound that keeps the leeway finite."""
AT_BOUND = 1 - 1e-5
"""A step as long as this part of what is allowed has been shortened; the rest may be rounding."""

a, b, c = sympy.symbols("a b c", real=True)


def leeway(optimiser: Optimiser) -> Value:
    """How many times the usual length is usual now."""
    return optimiser.scalar("leeway", "one")


def allowed_length(optimiser: Optimiser) -> Value:
    """``usual · leeway``, of which the next step's squared length may be ``step_growth`` times."""
    usual = optimiser.scalar("usual_length")
    if optimiser.settings.step_growth is None:
        return usual
    values = {a: usual, b: leeway(optimiser)}
    return optimiser.builder.pointwise(a * b, values, name="allowed_length")


def note_length(optimiser: Optimiser) -> None:
    """The running mean of squared lengths, which bounds the next step; it begins with the first step's.

    A single step that wants to be longer is an outlier. Where one after another does, what was usual is so
    no more: after a standstill the mean is next to nothing, and twice that would be no step for hundreds of
    updates. So each of them doubles the leeway of the next.
    """
    usual, length = optimiser.scalar("usual_length"), optimiser.chosen(CHOSEN["length"])
    growth = optimiser.settings.step_growth
    if growth is not None:
        more = leeway(optimiser)
        shortened = b - as_float(AT_BOUND * growth) * a * c
        wider = select(shortened, minimum(LEEWAY * c, as_float(MOST_LEEWAY)), sympy.Integer(1))
        values = {a: usual, b: length, c: more}
        optimiser.write(more, select(a, wider, sympy.Integer(1)), values, "leeway_now")
    decay = as_float(USUAL)
    mean = select(a, decay * a + (1 - decay) * b, b)
    optimiser.write(usual, mean, {a: usual, b: length}, "usual_length_now")
