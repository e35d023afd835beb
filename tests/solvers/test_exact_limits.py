"""The exact solver near no damping at all, on rank-deficient problems, and where it ends."""

from __future__ import annotations

import math

import oracles
import pytest
import torch
from architectures import normal
from exact_problems import FORMS, assert_same, direction
from problems import EVERY_LOSS
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import gncompile
from gncompile.frontends.torch_export import trace
from gncompile.pipeline import prepare

TINY = 1e-14


def network(loss: str, seed: int, samples: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    """More parameters than the root has rows, which are independent."""
    torch.manual_seed(seed)
    outputs = max(2, EVERY_LOSS[loss].least_outputs)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs)).double()
    generator = torch.Generator().manual_seed(seed)
    x = 2 * normal(generator, samples, 4)
    return model, x, EVERY_LOSS[loss].targets(generator, samples, outputs)


def by_singular_values(
    model: nn.Module, loss: str, x: Tensor, y: Tensor, damping: float
) -> dict[str, Tensor]:
    """``−(G + λ)⁻¹ ∇`` by the singular values of the rows themselves, which nothing squares.

    A sample's gradient at the output is ``g = L r`` with the root ``L Lᵀ`` of the Hessian, and a rest where L
    does not reach, so ``∇ = (1/N) Jᵀ r`` and a rest.
    """
    at, argument, count = oracles.parameters(model), EVERY_LOSS[loss].argument, len(x)
    z = model(x).detach()
    values, vectors = torch.linalg.eigh(oracles.output_hessian(argument, z, y))
    values = torch.where(values > 1e-12, values, 0.0)
    root = vectors * values.sqrt()[:, None]
    g = torch.func.grad(lambda v: oracles.total_loss(argument, v, y))(z)
    r = torch.linalg.pinv(root) @ g[..., None]
    rest = (g[..., None] - root @ r)[..., 0]
    rest = torch.where(rest.abs() > 1e-12 * g.abs().amax(), rest, 0.0)
    jacobian = jacrev(lambda p: functional_call(model, p, (x,)))(at)
    flat = torch.cat([jacobian[name].flatten(2) for name in at], dim=2)
    rows = (root.mT @ flat).flatten(0, 1) / count**0.5
    u, s, vh = torch.linalg.svd(rows, full_matrices=True)
    along = vh @ torch.einsum("nkp,nk->p", flat, rest) / count
    s = torch.where(s > 1e-10 * s[0], s, 0.0)  # others are rounding
    s = torch.cat([s, s.new_zeros(len(along) - len(s))])
    residual = u.mT @ r.flatten() / count**0.5
    along[: len(residual)] += s[: len(residual)] * residual
    delta = -vh.mT @ (along / (s**2 + damping))
    parts = delta.split([p.numel() for p in at.values()])
    return {name: d.view_as(p) for (name, p), d in zip(at.items(), parts, strict=True)}


@pytest.mark.parametrize("loss", ["bce_with_logits", "cross_entropy", "huber", "mse"])
@pytest.mark.parametrize("seed", range(2))
def test_hardly_any_damping(loss: str, seed: int) -> None:
    """Huber's linear part has no curvature, and λ alone bounds that step: 1e14 long, right to nine digits."""
    model, x, y = network(loss, seed)
    expected, traced = by_singular_values(model, loss, x, y, TINY), trace(model, x, passes=prepare)
    found = direction(traced, loss, x, y, TINY, "dual")
    assert_same(found, expected, 1e-9, "dual")
    if loss != "huber":  # λ is less than the roundings of G
        # whose condition is that of the rows squared, 1e6 here
        assert_same(direction(traced, loss, x, y, TINY, "primal"), expected, 1e-8, "primal")


@pytest.mark.parametrize("damping", [1e-30, 1e-14, 1e-6])
@pytest.mark.parametrize("form", FORMS)
def test_a_rank_deficient_problem_takes_finite_steps(form: str, damping: float) -> None:
    """Equal samples, equal hidden units and dead ones: neither the rows nor the columns are independent."""
    model, x, y = network("mse", 0, 6)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[0].weight[2], model[0].bias[2] = 0, -1e3
    x[3:] = x[:3]
    traced = trace(model, x, passes=prepare)
    found = direction(traced, "mse", x, y, damping, form)
    expected = by_singular_values(model, "mse", x, y, damping)
    assert_same(found, expected, 1e-8, form)


def exponential(x: Tensor, theta: Tensor) -> Tensor:
    return theta[0] * torch.exp(-theta[1] * x) + theta[2]


def logistic(x: Tensor, theta: Tensor) -> Tensor:
    return theta[0] / (1 + torch.exp(theta[1] - theta[2] * x))


class Curve(nn.Module):
    """One of these, with a parameter for each letter."""

    def __init__(self, kind: str, start: list[float]) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b, self.c = (
            nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in start
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "exponential":
            return self.a * torch.exp(-self.b * x) + self.c
        return self.a / (1 + torch.exp(self.b - self.c * x))


CURVES = {
    "exponential": (exponential, [1.0, 0.3, 0.0], [5.0, 1.5, 0.4]),
    "logistic": (logistic, [400.0, 1.0, 0.3], [700.0, 5.0, 0.75]),
}


@pytest.mark.parametrize("scale", ["identity", "diagonal"])
@pytest.mark.parametrize("kind", CURVES)
def test_it_ends_where_scipy_ends(kind: str, scale: str) -> None:
    """From the same start; the minimum of three parameters is known to half the digits of its flat valley."""
    least_squares = pytest.importorskip("scipy.optimize").least_squares
    function, start, truth = CURVES[kind]
    x = torch.linspace(0, 12, 25, dtype=torch.float64)[:, None]
    y = function(x, torch.tensor(truth, dtype=torch.float64))
    y = y + 0.01 * truth[0] * normal(torch.Generator().manual_seed(0), 25, 1)
    model = Curve(kind, start)
    trainer = gncompile.compile(model, "mse", x, solver="exact", damping_scale=scale)
    for _ in range(60):
        stats = trainer.step(x, y)

    def residuals(theta: object) -> object:
        return (function(x, torch.as_tensor(theta)) - y).flatten().numpy()

    found = least_squares(residuals, start, method="lm", xtol=1e-14, ftol=1e-14, gtol=1e-14)
    reached = torch.cat([p.detach() for p in (model.a, model.b, model.c)])
    assert float(stats.loss) * len(x) == pytest.approx(found.cost, rel=1e-12)
    torch.testing.assert_close(reached, torch.from_numpy(found.x), rtol=1e-6, atol=0)
    assert math.isfinite(found.cost)
