"""What a step does, by its number: what is refreshed, chosen or checked when.

The phases of a step ask for this (``phases.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..base.settings import Settings

COMPARED = 10
"""Steps between comparisons of the averaged parameters with the latest; one is a forward pass."""
MEASURED = 20
"""Steps between measurements of the gradient's noise; one is the weight gradients and a direction."""


@dataclass(frozen=True)
class Due:
    """What one second-order step does beside gradient, direction and update."""

    factors: bool
    """New curvature factors."""
    whole_inputs: bool
    """Whether input factors are those of the whole batch, as in the first steps, or of a share."""
    inverses: bool
    """New inverses of the factors."""
    factor_damping: bool
    """A choice of γ, which refreshes the inverses too."""
    damping: bool
    """The check of ρ, which adapts λ or undoes the step."""
    search: bool
    """Whether λ is halved or doubled by it, and γ follows."""
    comparison: bool
    """Whether the averaged parameters are better than the latest."""
    noise: bool
    """How much of the gradient is noise."""
    by_layer: bool
    """Whether each layer gets a step size of its own, as in the first steps, or all one together."""
    plain: bool = False
    """Whether no momentum is chosen, where noise leads: the last step's change of the output, which is not
    needed then, is not computed."""
    dropout: bool = True
    """Whether masks of dropout are drawn, or nothing is dropped, as of a model in evaluation mode."""
    again: bool = False
    """Whether the step was made before, and is tried with another damping."""

    @property
    def fresh(self) -> bool:
        """Whether there are new inverses."""
        return self.inverses or self.factor_damping


def due(settings: Settings, updates: int, since_refresh: int) -> Due:
    """What is due in the step after ``updates`` steps, ``since_refresh`` of them since the last inverses."""
    always = updates < settings.refresh_always
    search = updates < min(settings.search_steps, settings.factor_damping_period)
    factors = always or updates % settings.factors_every == 0
    period = refresh_period(settings, updates)
    waits = settings.factors_every <= period < settings.refresh_every and not factors
    return Due(
        factors=factors,
        whole_inputs=updates < settings.whole_inputs,
        inverses=since_refresh + 1 >= (settings.refresh_every if waits else period),
        factor_damping=settings.solver == "kronecker"
        and updates > 0
        and updates % settings.factor_damping_period == 0,
        damping=search or (updates + 1) % settings.damping_period == 0,
        search=search,
        comparison=settings.average > 0 and updates > 0 and updates % COMPARED == 0,
        noise=settings.gather_noise is not None and updates % MEASURED == MEASURED // 2,
        by_layer=updates < settings.layer_steps,
    )


def refresh_period(settings: Settings, updates: int) -> int:
    """Steps between inverses, more and more of them: the later a batch, the less it changes an average.

    On the way to ``refresh_every`` they are a multiple of the steps between factors, and :func:`due` lets
    inverses wait for these: of older factors they would differ little from the last ones.
    """
    steps = 1 + updates // max(settings.refresh_always, 1)
    if steps >= settings.refresh_every:
        return settings.refresh_every
    return steps // settings.factors_every * settings.factors_every or steps


def settled(settings: Settings) -> int:
    """The first steps, after which the same phases are due every :func:`cycle`."""
    rare = settings.refresh_always * (settings.refresh_every - 1)
    return max(1, rare, settings.whole_inputs, settings.layer_steps, settings.search_steps)


def cycle(settings: Settings) -> int:
    """Steps after which, once the first steps are over, the same phases are due again.

    What is due more seldom than every 100 steps is not waited for.
    """
    periods = (
        settings.factors_every,
        settings.refresh_every,
        settings.factor_damping_period,
        settings.damping_period,
        COMPARED,
        MEASURED,
    )
    return math.lcm(*(period for period in periods if period <= 100))
