"""Laplace's approximation against dense algebra: Jacobians by torch.func, matrices by torch.linalg and numpy.

All in float64. What is compared is the same formula in another order, so 1e-9 is rounding, amplified by the
condition of matrices whose eigenvalues lie between τ and N/σ².
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

import gncompile
import gncompile.losses
from gncompile import Posterior
from gncompile.errors import BatchError, CheckpointError, CompileError, GncompileError, LossError

SIGMA, TAU = 0.3, 0.7
RTOL = 1e-9


def jacobians(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """``∂z/∂W̄`` of every layer with a weight, ``[N, K, out · (in + 1)]``, by torch.func."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def output(p: dict[str, Tensor], xi: Tensor) -> Tensor:
        return functional_call(model, p, (xi[None],))[0].flatten()

    found = vmap(jacrev(output), in_dims=(None, 0))(parameters, x)
    rows = {}
    for name, weight in found.items():
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and weight.dim() == 3:  # a vector: a layer of its own
            rows[name] = weight
        elif kind == "weight":
            bias = [found[f"{layer}.bias"][..., None]] if f"{layer}.bias" in found else []
            rows[layer] = torch.cat([weight.flatten(3), *bias], dim=-1).flatten(2)
    return rows


def dense_prediction(J: dict[str, Tensor], precisions: dict[str, Tensor]) -> Tensor:
    """``Σ_layers J (N/σ² G + τ I)⁻¹ Jᵀ``."""
    return sum(J[layer] @ torch.linalg.solve(m, J[layer].mT) for layer, m in precisions.items())


def precisions(
    factors: dict[str, Any], samples: int, sigma: float, tau: float
) -> dict[str, Tensor]:
    """``(N/σ²) Ḡ ⊗ Q + τ I`` written out."""
    return {
        layer: samples / sigma**2 * f.dense() + tau * torch.eye(math.prod(f.shape)).double()
        for layer, f in factors.items()
    }


def data(samples: int, inputs: int = 3, outputs: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, inputs, generator=generator).double(),
        torch.randn(samples, outputs, generator=generator).double(),
    )


def mlp(*hidden: nn.Module, inputs: int = 3, outputs: int = 2) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(inputs, 4), *hidden, nn.Linear(4, outputs)).double()


class Windows(nn.Module):
    """A convolution, a vector that is trained, and a head without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3)
        self.norm = nn.LayerNorm(8, bias=False)
        self.head = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.conv(x[:, None])).flatten(1)))


# --- predictions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "samples"),
    [
        (nn.Sequential(nn.Linear(3, 2)).double(), 40),
        (mlp(), 40),
        (mlp(nn.Tanh()), 1),
    ],
    ids=["linear", "deep linear", "one sample"],
)
def test_where_the_product_is_exact_so_is_the_posterior(model: nn.Module, samples: int) -> None:
    """Against the layers' Gauss-Newton blocks of ``Σ_n J_nᵀ J_n / σ²``; no factors enter."""
    x, y = data(samples)
    posterior = gncompile.laplace(model, "mse", x, y, noise=SIGMA, prior_precision=TAU)
    J = jacobians(model, x)
    blocks = {
        layer: (j.mT @ j).sum(0) / SIGMA**2 + TAU * torch.eye(j.shape[-1]).double()
        for layer, j in J.items()
    }
    new, _ = data(5, seed=3)
    mean, covariance = posterior.predict(new)
    wanted = dense_prediction(jacobians(model, new), blocks)
    torch.testing.assert_close(covariance, wanted, rtol=RTOL, atol=0)
    torch.testing.assert_close(mean, model(new).detach(), rtol=1e-12, atol=1e-12)
    evidence = evidence_by_slogdet(model, "mse", x, y, blocks, SIGMA, TAU)
    torch.testing.assert_close(
        float(posterior.log_marginal_likelihood()), evidence, rtol=RTOL, atol=0
    )


def evidence_by_slogdet(
    model: nn.Module,
    loss: str,
    x: Tensor,
    y: Tensor,
    blocks: dict[str, Tensor],
    sigma: float,
    tau: float,
) -> float:
    """The log marginal likelihood with torch's densities and determinants of the whole matrices."""
    z = model(x).detach()
    if loss == "mse":
        likelihood = torch.distributions.Normal(z, sigma).log_prob(y).sum()
    else:
        likelihood = torch.distributions.Categorical(logits=z).log_prob(y).sum()
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    prior = torch.distributions.Normal(torch.zeros_like(theta), tau**-0.5).log_prob(theta).sum()
    half_logdet = sum(torch.linalg.slogdet(m / (2 * math.pi))[1] for m in blocks.values()) / 2
    return float(likelihood + prior - half_logdet)


@pytest.mark.parametrize("model", [mlp(nn.Tanh()), Windows().double()], ids=["tanh", "windows"])
@pytest.mark.parametrize("method", ["kflr", "kfra"])
def test_predictions_are_those_of_the_dense_matrices(model: nn.Module, method: str) -> None:
    inputs = 3 if isinstance(model, nn.Sequential) else 6
    x, y = data(30, inputs)
    if method == "kfra" and inputs == 6:
        method = "kfac_rp"
    posterior = gncompile.laplace(
        model, nn.MSELoss(), x, y, noise=SIGMA, prior_precision=TAU, method=method
    )
    matrices = precisions(posterior.factors, 30, SIGMA, TAU)
    new, _ = data(7, inputs, seed=4)
    wanted = dense_prediction(jacobians(model, new), matrices)
    prediction = posterior.predict(new)
    torch.testing.assert_close(prediction.covariance, wanted, rtol=RTOL, atol=0)
    torch.testing.assert_close(
        prediction.standard_deviation, wanted.diagonal(dim1=1, dim2=2).sqrt(), rtol=RTOL, atol=0
    )
    evidence = evidence_by_slogdet(model, "mse", x, y, matrices, SIGMA, TAU)
    torch.testing.assert_close(
        float(posterior.log_marginal_likelihood()), evidence, rtol=RTOL, atol=0
    )
    tight = gncompile.laplace(
        model, "mse", x, y, noise=SIGMA, prior_precision=TAU, method=method, memory_budget=1
    )
    if method != "kfac_rp":  # whose draws are others, a sample at a time
        torch.testing.assert_close(tight.predict(new).covariance, wanted, rtol=RTOL, atol=0)


def test_reductions_of_a_loss_do_not_change_its_likelihood() -> None:
    model, (x, y) = mlp(nn.Tanh()), data(12)
    losses = "mse", nn.MSELoss(), nn.MSELoss(reduction="sum")
    found = [float(gncompile.laplace(model, e, x, y).log_marginal_likelihood()) for e in losses]
    assert found[1:] == pytest.approx(found[:1] * 2, rel=1e-12)


def test_weights_of_outputs_are_noises_of_their_own() -> None:
    """Targets standardised by 2 and 5 with noise ½ have the noises 1 and 2.5."""
    model, (x, y) = mlp(nn.Tanh()), data(12)
    scale = torch.tensor([2.0, 5.0]).double()
    loss = gncompile.losses.standardised("mse", scale)
    posterior = gncompile.laplace(model, loss, x, y, noise=0.5)
    z = model(x).detach()
    wanted = torch.distributions.Normal(z, (0.5 * scale).expand_as(z)).log_prob(y).sum()
    assert posterior.log_likelihood == pytest.approx(float(wanted), rel=1e-12)


def test_float32_is_close_to_float64() -> None:
    """Outputs and Jacobians are rounded to 6e-8 each, the factors too; the condition adds two digits."""
    model, (x, y) = mlp(nn.Tanh()), data(50)
    wanted = gncompile.laplace(model, "mse", x, y, noise=SIGMA).predict(x)
    model = mlp(nn.Tanh()).float()
    found = gncompile.laplace(model, "mse", x.float(), y.float(), noise=SIGMA).predict(x.float())
    assert found.covariance.dtype == torch.float32
    torch.testing.assert_close(found.covariance.double(), wanted.covariance, rtol=1e-4, atol=1e-8)


# --- samples ---------------------------------------------------------------------------------------------


def test_samples_have_the_posterior_covariance() -> None:
    """Every element within 5 standard errors, ``√((Σ_ii Σ_jj + Σ_ij²)/n)``; 144 and 100 of them."""
    model, (x, y), n = mlp(nn.Tanh()), data(20), 20_000
    posterior = gncompile.laplace(model, "mse", x, y, noise=SIGMA, prior_precision=TAU)
    drawn = posterior.sample(n, generator=torch.Generator().manual_seed(7))
    assert {k: v.shape[1:] for k, v in drawn.items()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    for layer, matrix in precisions(posterior.factors, 20, SIGMA, TAU).items():
        joined = torch.cat([drawn[f"{layer}.weight"], drawn[f"{layer}.bias"][..., None]], dim=-1)
        mode = torch.cat([model[int(layer)].weight, model[int(layer)].bias[:, None]], dim=1)
        away = joined.flatten(1) - mode.detach().flatten()
        wanted = torch.linalg.inv(matrix)
        square = torch.outer(wanted.diagonal(), wanted.diagonal()) + wanted**2
        scores = (away.T @ away / n - wanted) / (square / n).sqrt()
        assert float(scores.abs().max()) < 5
        assert float((away.mean(0) / (wanted.diagonal() / n).sqrt()).abs().max()) < 5


def test_samples_go_into_the_model() -> None:
    model, (x, y) = mlp(nn.Tanh()), data(20)
    posterior = gncompile.laplace(model, "mse", x, y, subset="last_layer")
    drawn = posterior.sample(3)
    assert set(drawn) == {"2.weight", "2.bias"}
    assert vmap(lambda p: functional_call(model, p, (x,)))(drawn).shape == (3, 20, 2)


# --- evidence --------------------------------------------------------------------------------------------


def test_the_evidence_has_the_derivative_that_is_stated() -> None:
    """``∂/∂ log τ`` by central differences, whose error with h = 1e-4 is of order h² = 1e-8."""
    model, (x, y) = mlp(nn.Tanh()), data(25)
    posterior = gncompile.laplace(model, "mse", x, y, noise=SIGMA, prior_precision=TAU)
    h, values = 1e-4, torch.cat([p.detach().flatten() for p in model.parameters()])
    up, down = (posterior.log_marginal_likelihood(TAU * math.exp(s)) for s in (h, -h))
    stated = (posterior.effective_parameters - TAU * float(values.square().sum())) / 2
    assert float(up - down) / (2 * h) == pytest.approx(stated, rel=1e-6)
    log_tau = torch.tensor(math.log(TAU), dtype=torch.float64, requires_grad=True)
    posterior.log_marginal_likelihood(log_tau.exp()).backward()
    assert float(log_tau.grad) == pytest.approx(stated, rel=1e-12)


def test_another_prior_is_that_of_a_new_posterior() -> None:
    model, (x, y) = mlp(nn.Tanh()), data(20)
    taus = {"0": 3.0, "2": 0.5}
    moved = gncompile.laplace(model, "mse", x, y, noise=SIGMA).with_prior(taus)
    wanted = gncompile.laplace(model, "mse", x, y, noise=SIGMA, prior_precision=taus)
    assert moved.prior_precision == taus
    assert moved.log_marginal_likelihood() == wanted.log_marginal_likelihood()
    assert torch.equal(moved.predict(x).covariance, wanted.predict(x).covariance)
    with pytest.raises(CompileError, match="nothing of layer '2'"):
        moved.with_prior({"0": 1.0})


@pytest.mark.parametrize("per_layer", [False, True])
def test_the_prior_found_has_the_largest_evidence(per_layer: bool) -> None:
    model, (x, y) = mlp(nn.Tanh()), data(25)
    posterior = gncompile.laplace(model, "mse", x, y, noise=SIGMA)
    best = posterior.optimise_prior(per_layer=per_layer)
    largest = float(best.log_marginal_likelihood())
    assert len(set(best.prior_precision.values())) == 1 + per_layer
    groups = [["0"], ["2"]] if per_layer else [["0", "2"]]
    for group in groups:
        taus = np.geomspace(1e-6, 1e6, 121)
        others = [
            float(
                best.log_marginal_likelihood(
                    best.prior_precision | dict.fromkeys(group, best.prior_precision[group[0]] * t)
                )
            )
            for t in taus
        ]
        assert max(others) <= largest + 1e-10
        assert np.argmax(others) == 60  # the factor 1
    assert largest >= float(posterior.optimise_prior().log_marginal_likelihood()) - 1e-10


# --- classes ---------------------------------------------------------------------------------------------


def classes(samples: int = 40) -> tuple[nn.Module, Tensor, Tensor]:
    x, _ = data(samples)
    return mlp(nn.Tanh(), outputs=3), x, (x @ torch.ones(3).double()).sign().long() + 1


def test_a_classifier_has_the_evidence_of_its_likelihood() -> None:
    model, x, y = classes()
    for loss in ("cross_entropy", nn.CrossEntropyLoss()):
        posterior = gncompile.laplace(model, loss, x, y, prior_precision=TAU)
        matrices = precisions(posterior.factors, 40, 1.0, TAU)
        wanted = evidence_by_slogdet(model, "cross_entropy", x, y, matrices, 1.0, TAU)
        assert float(posterior.log_marginal_likelihood()) == pytest.approx(wanted, rel=RTOL)


def test_probabilities_average_out_the_logits() -> None:
    model, x, y = classes()
    posterior = gncompile.laplace(model, "cross_entropy", x, y, prior_precision=TAU)
    z, covariance = posterior.predict(x)
    probit = posterior.probabilities(x)
    scaled = z / (1 + math.pi / 8 * covariance.diagonal(dim1=1, dim2=2)).sqrt()
    torch.testing.assert_close(probit, scaled.softmax(dim=1), rtol=1e-12, atol=0)
    n, generator = 4000, torch.Generator().manual_seed(0)
    found = posterior.probabilities(x, "mc", samples=n, generator=generator)
    torch.testing.assert_close(found.sum(1), torch.ones(40).double(), rtol=1e-12, atol=0)
    drawn = torch.distributions.MultivariateNormal(z, covariance + 1e-12 * torch.eye(3).double())
    shares = drawn.sample((n,)).softmax(dim=-1)  # torch's generator, another one
    error = (shares.var(0) * 2 / n).sqrt()
    assert float(((found - shares.mean(0)) / error).abs().max()) < 5


def test_a_sigmoid_is_averaged_as_an_integral_is() -> None:
    """By Gauss-Hermite quadrature of 60 points, exact to rounding here; MC within 5 standard errors."""
    x, _ = data(10)
    model, y = mlp(nn.Tanh(), outputs=1), (x[:, :1] > 0).double()
    posterior = gncompile.laplace(model, "bce_with_logits", x, y, prior_precision=0.05)
    z, covariance = posterior.predict(x)
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    logits = z.numpy() + np.sqrt(covariance.numpy()[:, :, 0]) * nodes
    links = 1 / (1 + np.exp(-logits))
    mean = links @ weights / weights.sum()
    error = np.sqrt((links**2 @ weights / weights.sum() - mean**2) / 4000)
    found = posterior.probabilities(
        x, "mc", samples=4000, generator=torch.Generator().manual_seed(0)
    )
    assert np.abs((found[:, 0].numpy() - mean) / error).max() < 5
    probit = posterior.probabilities(x)[:, 0].numpy()
    assert np.abs(probit - mean).max() < 0.02  # MacKay's approximation, 0.02 at most


# --- data, layers, files ---------------------------------------------------------------------------------


def test_batches_are_the_data_they_make_up() -> None:
    model, (x, y) = mlp(nn.Tanh()), data(25)
    whole = gncompile.laplace(model, "mse", x, y)
    parts = [(x[:4], y[:4]), (x[4:], y[4:])]
    for given in (parts, [{"x": a, "y": b} for a, b in parts]):
        found = gncompile.laplace(model, "mse", given)
        assert found.samples == 25
        assert float(found.log_marginal_likelihood()) == pytest.approx(
            float(whole.log_marginal_likelihood()), rel=1e-12
        )
        torch.testing.assert_close(
            found.predict(x).covariance, whole.predict(x).covariance, rtol=RTOL, atol=0
        )


def test_a_subset_is_what_is_left_by_freezing_the_rest() -> None:
    model, (x, y) = mlp(nn.Tanh()), data(25)
    found = [gncompile.laplace(model, "mse", x, y, subset=s) for s in ("last_layer", ["2"])]
    model[0].requires_grad_(False)
    wanted = gncompile.laplace(model, "mse", x, y).predict(x)
    for posterior in found:
        assert list(posterior.factors) == ["2"]
        torch.testing.assert_close(posterior.predict(x).covariance, wanted.covariance)


def test_a_posterior_does_not_follow_its_model() -> None:
    model, (x, y) = mlp(nn.Tanh()), data(25)
    posterior = gncompile.laplace(model, "mse", x, y)
    before = posterior.predict(x)
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(posterior.predict(x).mean, before.mean)


def test_a_posterior_comes_back_from_its_file(tmp_path: Path) -> None:
    from safetensors import safe_open

    model, (x, y), path = mlp(nn.Tanh()), data(25), tmp_path / "posterior.safetensors"
    posterior = gncompile.laplace(model, "mse", x, y, noise=SIGMA).optimise_prior(per_layer=True)
    posterior.save(path)
    with torch.no_grad():
        model[0].weight.zero_()
    loaded = Posterior.load(path, model, x[:2])
    assert repr(loaded) == repr(posterior)
    assert float(loaded.log_marginal_likelihood()) == float(posterior.log_marginal_likelihood())
    for ours, theirs in zip(loaded.predict(x), posterior.predict(x), strict=True):
        assert torch.equal(ours, theirs)
    assert float(model[0].weight.detach().abs().max()) == 0  # the posterior has a copy
    with safe_open(path, framework="np") as file:  # as the header says, in numpy
        about = json.loads(file.metadata()["gncompile"])
        q, g = file.get_tensor("0/input"), file.get_tensor("0/output")
        assert about["samples"] == 25
        assert about["layers"]["0"]["parameters"] == ["0.weight", "0.bias"]
        np.testing.assert_array_equal(np.kron(g, q), posterior.factors["0"].dense().numpy())
    with pytest.raises(CheckpointError, match="belongs to another model"):
        Posterior.load(path, nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double(), x)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="does not match its digest"):
        Posterior.load(path, model, x)
    with pytest.raises(CheckpointError, match="no posterior"):
        Posterior.load(tmp_path / "nothing", model, x)


WRONG: dict[str, tuple[dict[str, Any], type[GncompileError], str]] = {
    "a noise of classes": ({"loss": "bce_with_logits", "noise": 1.0}, LossError, "has no noise"),
    "no noise": ({"noise": 0.0}, CompileError, "(?s)noise is 0.0.*standard deviation"),
    "no precision": ({"prior_precision": -1.0}, CompileError, "prior_precision is -1.0"),
    "a layer's alone": ({"prior_precision": {"0": 1.0}}, CompileError, "nothing of layer '2'"),
    "another's": ({"prior_precision": {"*": 1.0, "9": 1.0}}, CompileError, "no layer matches"),
    "no layer": ({"subset": ["9"]}, CompileError, "(?s)no layer matches.*the layers are 0, 2"),
    "a word": ({"subset": "first"}, CompileError, "(?s)subset is 'first'.*'last_layer', or a list"),
    "an oracle": ({"method": "hessian"}, CompileError, "unknown curvature method"),
    "no batches": ({"x": [], "y": None}, GncompileError, "no batches"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_is_said(case: str) -> None:
    options, kind, text = WRONG[case]
    x, y = data(6)
    given = {"loss": "mse", "x": x, "y": (y > 0).double(), **options}
    with pytest.raises(kind, match=text):
        gncompile.laplace(mlp(nn.Tanh()), **given)


def test_no_prior_is_the_best_where_all_are_alike() -> None:
    model, (x, y) = mlp(nn.Tanh()), data(6)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with pytest.raises(GncompileError, match="(?s)all parameters are 0|the curvature is 0"):
        gncompile.laplace(model, "mse", x, y).optimise_prior()
    with pytest.raises(LossError, match="no logits of classes"):
        gncompile.laplace(mlp(), "mse", x, y).probabilities(x)


def test_a_trained_network_has_error_bars_in_four_lines() -> None:
    """They are wide where there are no data, and the data lie within them."""
    torch.manual_seed(0)
    x = torch.rand(150, 1).double() * 6
    y = torch.sin(x) + SIGMA * torch.randn(150, 1).double()
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    trainer = gncompile.compile(model, "mse", x[:2])
    for _ in range(40):
        trainer.step(x, y)
    trainer.finish()
    new = torch.linspace(-6, 12, 7)[:, None].double()

    posterior = gncompile.laplace(model, "mse", x, y, noise=SIGMA).optimise_prior()
    mean, covariance = posterior.predict(new)

    spread = covariance.flatten().sqrt()
    assert float(spread[[0, 1, 5, 6]].min()) > 3 * float(spread[[2, 3, 4]].max())
    inside = posterior.predict(x)
    within = (y - inside.mean).abs() < 2 * (inside.variance + SIGMA**2).sqrt()
    assert 0.9 < float(within.double().mean()) <= 1.0
    assert mean.shape == (7, 1)


def test_curvature_that_overflows_is_refused_by_its_layer() -> None:
    x = 1e200 * torch.randn(8, 2, dtype=torch.float64)
    with pytest.raises(BatchError, match="factors of layer '0' are not finite"):
        gncompile.laplace(
            nn.Sequential(nn.Linear(2, 1)).double(), "mse", x, torch.ones(8, 1).double()
        )
