"""Arithmetic of the peers' steps on a chain of affine layers, from the formulas of the algorithm they run.

Multiplications and additions, a product known to be symmetric counted once, as
:class:`gncompile.program.costs.CostModel` counts ours: what the mathematics asks for, not what a library
happens to execute, so a rate is comparable.
"""

from __future__ import annotations

from itertools import pairwise


def gradient_flops(widths: tuple[int, ...], batch: int) -> float:
    """Forward, vectors backwards, weight gradients: three products a layer, two for the first."""
    weights = [i * o for i, o in pairwise(widths)]
    return 2 * batch * (3 * sum(weights) - weights[0])


def kfra_flops(widths: tuple[int, ...], batch: int) -> float:
    """A gradient, Q of every layer, and ``Ḡ ← WᵀḠW ⊙ E[b bᵀ]`` for every layer but the first."""
    products = sum(2 * o * o * i + o * i * i for i, o in list(pairwise(widths))[1:])
    slopes = sum(batch * d * d for d in widths[1:-1])
    return gradient_flops(widths, batch) + _input_moments(widths, batch) + products + slopes


def kfac_flops(widths: tuple[int, ...], batch: int) -> float:
    """A gradient, Q of every layer, sampled vectors backwards, and their second moments."""
    weights = [i * o for i, o in pairwise(widths)]
    vectors = 2 * batch * (sum(weights) - weights[0])
    moments = sum(batch * d * d for d in widths[1:])
    return gradient_flops(widths, batch) + _input_moments(widths, batch) + vectors + moments


def _input_moments(widths: tuple[int, ...], batch: int) -> float:
    return sum(batch * d * d for d in widths[:-1])
