"""Robust losses against their formulas in torch, differentiated by ``torch.func``, and scipy's fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from scipy.optimize import least_squares
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn.functional import huber_loss

import gncompile
from gncompile import Box, Term
from gncompile.data.domains import generator_of
from gncompile.errors import GncompileError

SQUARE = Box({"x": (0, 1), "y": (0, 1)})
SCALE = 0.7
ROUNDING = 1e-11
"""Relative, in float64: second derivatives of a small network, numbers about 1 summed in another order."""


def huber(r: Tensor) -> Tensor:
    return huber_loss(r, torch.zeros_like(r), reduction="none", delta=SCALE)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "soft_l1": lambda r: SCALE**2 * ((1 + (r / SCALE) ** 2).sqrt() - 1),
    "huber": huber,
    "geman_mcclure": lambda r: r**2 / (2 + 2 * (r / SCALE) ** 2),
}


@pytest.mark.parametrize("name", LOSSES)
def test_objective_gradient_and_curvature_are_those_of_the_loss(name: str) -> None:
    """Some residuals lie inside the scale, some far outside; the other term is a plain square."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    inside = Term("u__x__x + u__y__y + 9*(x - y)", SQUARE.interior(12), 2, loss=name, scale=SCALE)
    terms = {"inside": inside, "ends": Term("u - 3", SQUARE.faces(8))}
    problem = gncompile.residuals(net, "x y", "u", terms)
    batch = problem.batch()
    parameters = {n: p.detach() for n, p in net.named_parameters()}

    def residuals(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        def u(x: Tensor) -> Tensor:
            return functional_call(net, parameters, (x[None],))[0, 0]

        first, second = (batch.x[batch.rows[each]] for each in terms)
        laplacian = vmap(lambda x: hessian(u)(x).trace())(first)
        return laplacian + 9 * (first[:, 0] - first[:, 1]), vmap(u)(second) - 3

    def objective(parameters: dict[str, Tensor]) -> Tensor:
        r, s = residuals(parameters)
        return 2 * LOSSES[name](r).mean() + s.square().mean() / 2

    r, _ = residuals(parameters)
    assert 2 <= int((r.abs() < SCALE).sum()) <= 10
    close(problem.evaluate(batch.x[:12], "inside")["inside"], r)
    trainer = problem.compile()
    x, y = batch.pair(problem.equations)
    assert float(trainer.loss(x, y)) == pytest.approx(float(objective(parameters)), rel=ROUNDING)
    assert problem.energies()["inside"] == pytest.approx(float(LOSSES[name](r).mean()))
    gradients = trainer.gradients(x, y)
    for parameter, wanted in grad(objective)(parameters).items():
        close(gradients[f"net.{parameter}"], wanted)

    direction = {
        n: torch.randn(p.shape, generator=generator_of(5), dtype=p.dtype)
        for n, p in parameters.items()
    }
    along = [
        sum(((j[n].flatten(1) @ direction[n].flatten()) for n in direction), torch.zeros(()))
        for j in jacrev(residuals)(parameters)
    ]
    slope = vmap(grad(lambda r: LOSSES[name](r)))(r)
    weight = slope**2 / (2 * LOSSES[name](r))
    curved = 2 * (weight * along[0] ** 2).mean() + along[1].square().mean()
    damping = trainer.damping * sum(d.square().sum() for d in direction.values())
    named = {f"net.{n}": d for n, d in direction.items()}
    close(trainer.quadratic(x, y, [named])[0], (curved + damping).reshape(1, 1))


@pytest.mark.parametrize("name", ["soft_l1", "huber"])
def test_a_line_among_outliers_is_that_of_scipy(name: str) -> None:
    generator = generator_of(1)
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)[:, None]
    y = 2 * x[:, 0] - 1 + 0.05 * torch.randn(30, generator=generator, dtype=torch.float64)
    y[::5] += 20
    line = nn.Linear(1, 1).double()
    term = Term("u - y", x, fields={"y": y}, loss=name, scale=0.1)
    problem = gncompile.residuals(line, "x", "u", {"data": term})
    problem.compile().fit(updates=80, progress=False)
    fitted = least_squares(
        lambda p: p[0] * x[:, 0].numpy() + p[1] - y.numpy(), [0.0, 0.0], loss=name, f_scale=0.1,
        xtol=1e-14, ftol=1e-14, gtol=1e-14,
    )  # fmt: skip
    wanted = torch.from_numpy(fitted.x)
    found = torch.stack([line.weight[0, 0], line.bias[0]]).detach()
    assert float((found - wanted).norm()) < 1e-4  # what damped steps leave; noise moves it by 1e-2
    assert float((found - torch.tensor([2.0, -1.0])).norm()) < 0.2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loss": "hubber"}, "the term 'a' has an unknown loss 'hubber'. Did you mean 'huber'"),
        ({"loss": "huber", "scale": 0.0}, "scale of the loss of the term 'a' is 0.0"),
        ({"loss": "huber", "scale": float("nan")}, "scale of the loss of the term 'a' is nan"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GncompileError, match=text):
        net = nn.Linear(2, 1).double()
        gncompile.residuals(net, "x y", "u", {"a": Term("u", SQUARE.interior(4), **options)})


def close(found: Any, wanted: Tensor) -> None:
    assert float((found - wanted).norm()) <= ROUNDING * float(wanted.norm()) + 1e-13
