"""Losses as mathematics: value, gradient, output Hessian, its square root, and a sampler.

The objective is ``Ē = (1/N) Σ_n E_n`` over a batch of ``N`` samples with ``K`` outputs each. Four
kinds of per-sample loss ``E_n(z_n, y_n)`` are known, all convex in the network output ``z``::

    SeparableLoss        E_n = c Σ_j w_j e(z_j, y_j)                𝓗 = c diag(w e'')
    SoftmaxCrossEntropy  E_n = -c Σ_k ŷ_k log softmax(z)_k          𝓗 = c m (diag p - p pᵀ)
    CoupledLoss          E_n = c w e(z_1, …, z_K, y_1, …, y_T)      𝓗 = c w ∂²e/∂z², K small
    SumLoss              E_n = Σ_i α_i E_n,i(z_i, y_i)              𝓗 block-diagonal

``c`` is the :class:`Scale`, part of the declaration; the weights ``w`` are 1 unless a batch brings them
(:func:`gncompile.losses.weighted`). A separable loss is one sympy expression in
:data:`OUTPUT` and :data:`TARGET`; its slope, curvature and the verdict on its convexity are
derived.

What a program reads of a target are rows ``[N, …]``; ``layout`` names their columns.
"""

from __future__ import annotations

from .coupled_loss import CoupledLoss
from .cross_entropy import SoftmaxCrossEntropy
from .separable import NOISE, OUTPUT, TARGET, Noise, Sampler, SeparableLoss
from .sum_loss import SumLoss

Loss = SeparableLoss | SoftmaxCrossEntropy | CoupledLoss | SumLoss

__all__ = [
    "NOISE",
    "OUTPUT",
    "TARGET",
    "CoupledLoss",
    "Loss",
    "Noise",
    "Sampler",
    "SeparableLoss",
    "SoftmaxCrossEntropy",
    "SumLoss",
]
