"""The posterior of Laplace's approximation: samples, predictions, evidence, and the prior of the largest."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import mpmath
import torch
from torch import Tensor, nn

from ..base.options import by_pattern
from ..errors import (
    CheckpointError,
    CompileError,
    GncompileError,
    LossError,
    expected_got,
    require_known,
    require_whole,
)
from ..losses.vocabulary import Loss, SeparableLoss, SoftmaxCrossEntropy
from ..training.batches import as_returned
from ..training.factors import KroneckerFactors
from ..training.state import model_tensors
from .linearised import Linearised, Rows
from .posterior_file import StoredPosterior, read_posterior

Precision = float | Tensor
Precisions = Precision | Mapping[str, Precision]


class Prediction(NamedTuple):
    """What a network says of inputs, with what the uncertainty of its weights makes of it.

    ``mean``: the outputs at θ*, ``[N, *output]``. ``covariance``: that of the K outputs of each sample,
    ``[N, K, K]``, without the noise of the targets.
    """

    mean: Tensor
    covariance: Tensor

    @property
    def variance(self) -> Tensor:
        """The diagonals of the covariances, shaped like the mean."""
        return self.covariance.diagonal(dim1=-2, dim2=-1).reshape(self.mean.shape)

    @property
    def standard_deviation(self) -> Tensor:
        """The root of the variance."""
        return self.variance.sqrt()


@dataclass(frozen=True, eq=False)
class Posterior:
    """``N(θ*, Σ)`` with ``Σ⁻¹ = (N/σ²) Ḡ ⊗ Q + τ I`` for each layer; see :func:`gncompile.laplace`.

    ``factors`` are those of the negative log-likelihood with σ = 1, in float64, means over the ``samples`` N;
    ``prior_precision`` is τ by layer, ``noise`` σ, None where the likelihood has none, and ``loss`` the
    negative log-likelihood of all samples with σ = 1, up to a constant.
    """

    network: Linearised
    factors: dict[str, KroneckerFactors]
    prior_precision: dict[str, float]
    noise: float | None
    samples: int
    loss: float
    method: str
    sharing: str | Mapping[str, str]

    # --- weights --------------------------------------------------------------------------------------

    @cached_property
    def curvatures(self) -> dict[str, Tensor]:
        """By layer the eigenvalues ``λ ≥ 0`` of ``(N/σ²) Ḡ ⊗ Q``, ``[out, in+1]``."""
        scale = self.samples / (self.noise or 1.0) ** 2
        return {layer: scale * f.eigenvalues().clamp(min=0) for layer, f in self.factors.items()}

    @property
    def effective_parameters(self) -> float:
        """``γ = Σ λ/(λ + τ)``: how many directions the data decide, of all parameters."""
        pairs = [(values, self.prior_precision[layer]) for layer, values in self.curvatures.items()]
        return sum(float((values / (values + prior)).sum()) for values, prior in pairs)

    def sample(self, n: int = 1, *, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """``n`` draws of the parameters by name, ``[n, *shape]``: ``θ* + U (λ + τ)^-½ ε``.

        Only those of the posterior's layers; ``torch.func.functional_call`` takes the others from the model.
        """
        require_whole("n", n)
        drawn: dict[str, Tensor] = {}
        for layer, values in self.curvatures.items():
            (_, u_g), (_, u_q) = self.factors[layer].eigen
            noise = torch.randn(
                n, *values.shape, generator=generator, dtype=values.dtype, device=values.device
            )
            scaled = noise / (values + self.prior_precision[layer]).sqrt()
            whole = self.network.mode[layer] + u_g @ scaled @ u_q.T
            drawn |= self.network.places[layer].split(whole.to(self.network.reader.dtype))
        return drawn

    # --- predictions ----------------------------------------------------------------------------------

    def predict(self, x: Tensor | tuple[Tensor, ...]) -> Prediction:
        """Mean and covariance of the outputs of the network linearised at θ*: ``J Σ Jᵀ``.

        Exact for the Gaussian of the weights, by the rows J of each sample in the eigenbases of the factors.
        Cost for each sample: a backward pass for each of the K outputs, and a layer
        ``O(K out² + in² + out in)`` where its weight is used once, else ``O(K (out² in + out in²))``.
        """
        means, covariances = [], []
        for z, rows in self.network.outputs(x):
            covariance = torch.zeros((), dtype=torch.float64, device=z.device)
            for layer, values in self.curvatures.items():
                precisions = values + self.prior_precision[layer]
                covariance = covariance + _covariance(rows[layer], self.factors[layer], precisions)
            means.append(z.clone())
            covariances.append(covariance.to(z.dtype))
        output = self.network.traced.graph.output
        return Prediction(as_returned(output, torch.cat(means)), torch.cat(covariances))

    def probabilities(
        self,
        x: Tensor | tuple[Tensor, ...],
        method: Literal["probit", "mc"] = "probit",
        *,
        samples: int = 1000,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Probabilities of classes, the logits' uncertainty averaged out; shaped like the outputs.

        ``"probit"``: the link at ``z / √(1 + π v/8)``, with the variance v of each logit [MacKay 1992].
        ``"mc"``: the mean of the link over ``samples`` draws from ``N(z, J Σ Jᵀ)``. The link is the loss's:
        softmax of ``"cross_entropy"``, sigmoid of ``"bce_with_logits"``; for another
        :class:`~gncompile.errors.LossError`.
        """
        require_known("method of probabilities", method, ("probit", "mc"))
        link = _link(self.network.loss)
        prediction = self.predict(x)
        if method == "probit":
            return link(prediction.mean / (1 + math.pi / 8 * prediction.variance).sqrt())
        require_whole("samples", samples)
        values, vectors = torch.linalg.eigh(prediction.covariance.double())
        root = (vectors * values.clamp(min=0).sqrt()[:, None, :]).to(prediction.mean.dtype)
        total = torch.zeros_like(prediction.mean)
        for _ in range(samples):
            noise = torch.randn(
                *root.shape[:2], 1, generator=generator, dtype=root.dtype, device=root.device
            )
            total += link(prediction.mean + (root @ noise).reshape(prediction.mean.shape))
        return total / samples

    # --- evidence -------------------------------------------------------------------------------------

    @property
    def log_likelihood(self) -> float:
        """``log p(D | θ*)``; up to a constant where the loss is no normalised density, or weighs samples."""
        if self.noise is None:
            return -self.loss
        loss, outputs = self.network.loss, self.network.traced.graph.output.size
        # weights are 1/σ_k² of standardised targets, say; what has weight 0 is no part of the data
        given = loss.weights.values if isinstance(loss, SeparableLoss) and loss.weights else (1.0,)
        logs = [math.log(2 * math.pi * self.noise**2 / w) / 2 for w in given if w > 0]
        each = sum(logs) * outputs / len(given)
        return -self.loss / self.noise**2 - self.samples * each

    def log_marginal_likelihood(self, prior_precision: Precisions | None = None) -> Tensor:
        """``log p(D | θ*) + log p(θ*) − ½ log det(Σ⁻¹ / 2π)``, the evidence by Laplace's method, a scalar.

        For the given prior precision, of all layers or by patterns of them, or for the posterior's own.
        Differentiable in tensors τ; ``∂/∂ log τ = ½ (γ − τ ‖θ*‖²)``. Cost: ``O(P)``.
        """
        given = self.prior_precision if prior_precision is None else prior_precision
        total = torch.tensor(self.log_likelihood, dtype=torch.float64)
        for layer, prior in checked_precisions(given, self.factors).items():
            values, square = self.curvatures[layer].cpu(), self._squares[layer]
            tau = torch.as_tensor(prior, dtype=torch.float64).cpu()
            occam = values.numel() * tau.log() - torch.log(values + tau).sum()
            total = total + (occam - tau * square) / 2
        return total

    def optimise_prior(self, *, per_layer: bool = False) -> Posterior:
        """The posterior with the prior precision of the largest evidence, one of all or one of each layer.

        That is the root of ``γ(τ) = τ ‖θ*‖²``: there is one and no more, because γ falls and the right side
        rises; it is below ``P / ‖θ*‖²``. Raises :class:`~gncompile.errors.GncompileError` where there is
        none, because the curvature or all parameters are 0.
        """
        layers = list(self.factors)
        groups = [[layer] for layer in layers] if per_layer else [layers]
        found: dict[str, float] = {}
        for group in groups:
            values = torch.cat([self.curvatures[layer].flatten() for layer in group])
            square = sum(self._squares[layer] for layer in group)
            found |= dict.fromkeys(group, _largest_evidence(values, square, group))
        return replace(self, prior_precision=found)

    def with_prior(self, prior_precision: float | Mapping[str, float]) -> Posterior:
        """The posterior with this prior precision, of all layers or by patterns of them."""
        checked = checked_precisions(prior_precision, self.factors)
        return replace(self, prior_precision={k: float(tau) for k, tau in checked.items()})

    @cached_property
    def _squares(self) -> dict[str, float]:
        """``‖θ*‖²`` by layer."""
        return {layer: float(w.square().sum()) for layer, w in self.network.mode.items()}

    # --- files ----------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the model's code to one safetensors file, replacing it in one step.

        Tensors: ``<layer>/input`` and ``<layer>/output``, Q and Ḡ; ``<name>/value``, the model's parameters
        and buffers. The header's field ``gncompile`` holds JSON with the conventions and all numbers.
        """
        network = self.network
        layers = {
            name: {
                "parameters": list(layer.parameters),
                "bias": layer.homogeneous,
                "places": layer.places,
            }
            for name, layer in network.layers.items()
        }
        StoredPosterior(
            factors={layer: (f.input, f.output) for layer, f in self.factors.items()},
            values=model_tensors(network.model),
            loss=network.loss,
            layers=layers,
            prior_precision=self.prior_precision,
            noise=self.noise,
            samples=self.samples,
            loss_sum=self.loss,
            method=self.method,
            sharing=self.sharing,
        ).write(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: nn.Module, example_inputs: Any) -> Posterior:
        """The posterior saved at ``path``; of ``model``, which is copied, only the code has to be the same.

        ``example_inputs`` are as in :func:`gncompile.compile`. Raises
        :class:`~gncompile.errors.CheckpointError` if the file is missing, damaged, or of another model.
        """
        stored = read_posterior(path)
        model = stored.into(model, path)
        network = Linearised.of(model, stored.loss, example_inputs, list(stored.layers))
        factors = {}
        for layer, places in network.places.items():
            q, g = (factor.to(network.reader.device) for factor in stored.factors[layer])
            factors[layer] = KroneckerFactors(layer, q, g, stored.samples, places)
            expected, found = network.layers[layer].shape, factors[layer].shape
            if found != expected:
                raise CheckpointError(
                    f"the factors of layer {layer!r} are those of another model\n"
                    + expected_got(expected, found),
                    where=str(path),
                    instead="give the model that the posterior was made of",
                )
        return cls(
            network, factors, dict(stored.prior_precision), stored.noise, stored.samples,
            stored.loss_sum, stored.method, stored.sharing,
        )  # fmt: skip

    def __repr__(self) -> str:
        parameters = sum(values.numel() for values in self.curvatures.values())
        priors = sorted(set(self.prior_precision.values()))
        shown = f"{priors[0]:.4g}" + (f" to {priors[-1]:.4g}" if len(priors) > 1 else "")
        sigma = "" if self.noise is None else f", noise {self.noise:.4g}"
        return (
            f"Posterior({self.method} of {', '.join(self.factors)}: {parameters:,} parameters, "
            f"{self.samples:,} samples, prior precision {shown}{sigma})"
        )


def _covariance(rows: Rows, factors: KroneckerFactors, precisions: Tensor) -> Tensor:
    """``J_k Σ J_lᵀ`` of one layer, ``[n, K, K]``, with the eigenvalues of ``Σ⁻¹``, ``[out, in+1]``."""
    (_, u_g), (_, u_q) = factors.eigen
    if isinstance(rows, Tensor):
        along = (u_g.T @ rows.double() @ u_q / precisions.sqrt()).flatten(-2)
    else:  # (U_Gᵀ c)_i √(Σ_j (U_Qᵀ x̄)_j² / precision_ij)
        columns, inputs = (side.double() for side in rows)
        along = columns @ u_g * ((inputs @ u_q).square() @ (1 / precisions).T).sqrt()
    along = along.transpose(0, 1)
    return along @ along.mT


def checked_precisions(given: Any, layers: Collection[str]) -> dict[str, Any]:
    """τ by layer, of one number or of numbers by patterns of layers, which have to name all."""
    patterns = given if isinstance(given, Mapping) else {"*": given}
    found = by_pattern("prior_precision", patterns, list(layers))
    if missing := [layer for layer in layers if layer not in found]:
        raise CompileError(
            f"prior_precision says nothing of layer {missing[0]!r}",
            instead='give one number, or numbers for all layers: {"*": 1.0, "0": 10.0}',
        )
    for tau in found.values():
        tau = tau.detach() if isinstance(tau, Tensor) else tau
        one = not isinstance(tau, bool) and (
            isinstance(tau, int | float) or (isinstance(tau, Tensor) and tau.numel() == 1)
        )
        if not one or not 0 < float(tau) < math.inf:
            raise CompileError(
                f"prior_precision is {tau!r}",
                instead="give positive numbers, 1/variance of the weights",
            )
    return found


def checked_noise(loss: Loss, noise: float | None) -> float | None:
    """σ of a squared error, 1 unless given; no other loss has one."""
    squared = isinstance(loss, SeparableLoss) and loss.sampler == "normal"
    if noise is None:
        return 1.0 if squared else None
    if not squared:
        raise LossError(
            f"the loss {loss.name!r} has no noise: it is a negative log-likelihood as it is",
            where=f"noise = {noise!r}",
            instead="leave noise out, or use a squared error",
        )
    number = isinstance(noise, int | float) and not isinstance(noise, bool)
    if not number or not 0 < noise < math.inf:
        raise CompileError(
            f"noise is {noise!r}", instead="give the standard deviation of the targets' noise"
        )
    return float(noise)


def _link(loss: Loss) -> Any:
    if isinstance(loss, SoftmaxCrossEntropy) and not loss.places:
        return lambda z: z.softmax(dim=1)
    if isinstance(loss, SeparableLoss) and loss.sampler == "bernoulli":
        return torch.sigmoid
    raise LossError(
        f"the outputs under the loss {loss.name!r} are no logits of classes",
        instead="use predict, which gives mean and covariance of the outputs",
    )


def _largest_evidence(curvatures: Tensor, square: float, layers: Collection[str]) -> float:
    """The τ with ``Σ λ/(λ + τ) = τ ‖θ‖²``, by bracketing its logarithm."""
    values, largest = curvatures.cpu(), float(curvatures.max())
    if not (0 < largest < math.inf and 0 < square < math.inf):
        raise GncompileError(
            "no prior precision has the largest evidence: "
            + ("the curvature is 0 or not finite" if square > 0 else "all parameters are 0"),
            where=f"layers {', '.join(layers)}",
            instead="give prior_precision, or train the model before",
        )

    def excess(log_tau: Any) -> float:
        """``log γ − log(τ ‖θ‖²)``, which falls, and is close to a line on either side."""
        tau = math.exp(float(log_tau))
        return math.log(float((values / (values + tau)).sum())) - math.log(tau * square)

    # γ ≥ ½ ≥ τ ‖θ‖² at the lower end; γ < P at the upper.
    low, high = math.log(min(largest, 0.5 / square)), math.log(len(values) / square)
    return math.exp(float(mpmath.findroot(excess, (low, high), solver="anderson", tol=1e-20)))
