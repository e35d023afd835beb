"""Laplace's approximation with Kronecker factors: a posterior of a trained network's weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..base.settings import CURVATURE_METHODS, Settings
from ..errors import require_known
from ..losses.vocabulary import LossSpec
from ..training.arguments import checked_seed
from ..training.batches import Target
from .linearised import Linearised
from .measured_factors import Measurement, batches_of, example_of
from .posterior import Posterior, checked_noise, checked_precisions


def laplace(
    model: nn.Module,
    loss: LossSpec,
    x: Any,
    y: Target = None,
    *,
    method: str = "kflr",
    prior_precision: float | Mapping[str, float] = 1.0,
    noise: float | None = None,
    subset: str | Sequence[str] | None = None,
    sharing: str | Mapping[str, str] = "expand",
    samples: int = 1,
    seed: int = 0,
    memory_budget: int = 1 << 30,
) -> Posterior:
    """The Gaussian ``N(θ*, (N G + τ I)⁻¹)`` around the parameters θ* of a trained model [RBB].

    ``G ≈ Ḡ ⊗ Q`` layer by layer, as :func:`curvature` has it, of the negative log-likelihood, on the data
    that the model was trained on: ``(x, y)``, or ``x`` alone, a loader or list of batches.

    The negative log-likelihood of a sample is ``loss`` summed over outputs, whatever mean or sum the loss is
    under: ``nn.MSELoss()`` and ``"mse"`` are the same here. A squared error, ``½ Σ (z − y)²``, is divided by
    σ²; σ = ``noise``, by default 1, is the standard deviation of the targets. No other loss has a noise.

    ``prior_precision`` is τ, or by patterns of layers that of each, ``{"0": 1.0, "head.*": 10.0}``;
    :meth:`Posterior.optimise_prior` finds it. ``subset`` are the layers that are uncertain, by default all:
    ``"last_layer"``, or a list of names or patterns. The others stay as they are. ``method``, ``sharing``,
    ``samples``, ``seed`` and ``memory_budget`` are those of :func:`curvature`.

    Everything but the factors is computed in float64. The model is copied: what becomes of it afterwards does
    not change the posterior. Raises what :func:`curvature` does, and
    :class:`~gncompile.errors.LossError` for a sum of losses of several outputs.

    [RBB] Ritter, Botev, Barber, *A scalable Laplace approximation for neural networks*, 2018.

    >>> x = torch.linspace(-1, 1, 20)[:, None].double()
    >>> net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    >>> posterior = laplace(net, "mse", x, torch.sin(x), noise=0.1)
    >>> mean, covariance = posterior.predict(x[:4])
    >>> mean.shape, covariance.shape
    (torch.Size([4, 1]), torch.Size([4, 1, 1]))
    """
    require_known("curvature method", method, CURVATURE_METHODS)
    seed, batches = checked_seed(seed), batches_of(x, y)
    settings = Settings.from_options(sharing=sharing, samples=samples, memory_budget=memory_budget)
    example = example_of(model, batches) if y is None else x
    network = Linearised.of(model, loss, example, subset, memory_budget)
    precisions = checked_precisions(prior_precision, network.layers)
    sigma = checked_noise(network.loss, noise)
    measured = Measurement(
        network.traced, network.loss, network.reader, method, settings, seed=seed
    )
    factors, total = measured.of(batches)
    return Posterior(
        network=network,
        factors={layer: each.to(torch.float64) for layer, each in factors.items()},
        prior_precision={layer: float(tau) for layer, tau in precisions.items()},
        noise=sigma,
        samples=total.samples,
        loss=total.loss,
        method=method,
        sharing=sharing,
    )
