"""How much of a gradient is noise, and how many samples the next steps should be taken on.

The gradient of a batch is ``g = E[g_n]`` over its N samples. In the norm of the preconditioner P, in which
steps are taken, its square has a part that is due to the choice of samples::

    gᵀP g ≈ S + T/N,      T = E[g_nᵀP g_n]

T is measured with random signs s_n: the mean of ``s_n g_n`` over F samples is zero in expectation, and its
square in this norm T/F. ``T/S`` is the gradient noise scale of McCandlish, Kaplan, Amodei et al. (An
Empirical Model of Large-Batch Training, 2018), there with P = I.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sympy

from ..functions.primitives import as_float, finite, minimum, select
from ..program import operations as ir
from ..program.builder import Value
from .forward import Forward
from .optimiser import Optimiser
from .propagation import pull_back, weight_gradients

PATIENCE = 1 / 90
"""The share of the bound that each measurement which does not ask for more takes off: noise that lasts is a
standstill."""
LONGEST = 15
"""Measurements after which the bound falls no more."""
GROWTH = 2
"""The wanted samples are at most so many times those of the step that measured the noise."""

each, f, n, noise, old, power, s, signal, v, w = sympy.symbols(
    "each f n noise old power s signal v w", real=True
)


def measure_noise(
    optimiser: Optimiser,
    forward: Forward,
    seed: Value,
    gradients: Mapping[str, Value],
    deltas: Mapping[str, Value],
    preconditioned: Callable[[Mapping[str, Value]], Mapping[str, Value]],
    bound: float,
) -> None:
    """States ``noise``, its share ``T/N / gᵀPg``, and ``samples_wanted``, which keeps it below ``bound``.

    The bound falls while it holds (:data:`PATIENCE`), until the samples grow. ``forward`` and ``seed``, the
    loss's gradient at the output, are those of the F samples, ``deltas`` are ``−P g``,
    and ``preconditioned`` makes these of a gradient.
    T and S are means with half the weight on this batch; the wanted samples never fall. Costs a backward
    pass of the F samples and a direction.
    """
    builder = optimiser.builder
    signs = builder.emit(ir.Random("sign", (seed.spec.shape[0], 1)), name="signs")
    seed = builder.pointwise(v * s, {v: seed, s: signs}, name="e_output")
    random = weight_gradients(forward, pull_back(forward, seed, prefix="e"))
    random_square = optimiser.inner(random, preconditioned(random), "noise_power")
    square = optimiser.inner(gradients, deltas, "gradient_power")
    count = builder.emit(ir.Dot(), signs, signs, name="signs_count")
    batch = builder.leaf("scalar", "batch_size", ())
    values = {each: random_square, power: square, n: batch, f: count}
    share, state = f * each / (n * power), optimiser.scalar("noise")
    known = select(finite(share), share, old)
    optimiser.write(state, known, {**values, old: state}, "noise_now")
    means = {}
    for name, symbol, now in (
        ("sample_noise", noise, -f * each),
        ("signal", signal, f * each / n - power),
    ):
        state = optimiser.scalar(name)
        mean = select(finite(now), old / 2 + now / 2, old)
        means[symbol] = optimiser.write(state, mean, {**values, old: state}, f"{name}_now")
    waited = optimiser.scalar("noise_waited")
    allowed = as_float(bound) * (1 - as_float(PATIENCE) * w)
    largest = GROWTH * n
    now = select(signal, minimum((1 - allowed) / allowed * noise / signal, largest), largest)
    state = optimiser.scalar("samples_wanted")
    values = {**means, n: batch, old: state, w: waited}
    wanted = builder.pointwise(select(now - old, now, old), values, name="samples_enough")
    longer = select(s - n, sympy.Integer(0), minimum(w + 1, sympy.Integer(LONGEST)))
    optimiser.write(waited, longer, {s: wanted, n: batch, w: waited}, "noise_waited_now")
    optimiser.write(state, s, {s: wanted}, "samples_wanted_now")
