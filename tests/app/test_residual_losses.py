"""Robust losses against their formulas in torch, differentiated by ``torch.func``, and scipy's fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from scipy.optimize import least_squares
from sympy import Symbol
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, vmap
from torch.nn.functional import huber_loss

import gncompile
from gncompile import Box, Term
from gncompile.data.domains import generator_of
from gncompile.errors import GncompileError
from gncompile.functions.derive import differentiate
from gncompile.functions.expressions import evaluate
from gncompile.functions.plain_torch import plain
from gncompile.functions.robust import scales, signed_root
from gncompile.functions.stable_forms import stable

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
        ({"loss": "huber", "scale": 10**400}, "scale of the loss of the term 'a' is inf"),
        ({"loss": "huber", "scale": "1"}, "scale of the loss of the term 'a' is '1'"),
        ({"loss": "huber", "scale": 1e-80}, "lies from 1.2e-77 to 1.2e.77 in float64"),
        ({"weight": 10**400}, "weight of the term 'a' is inf"),
        (
            {"scale": 0.1},
            "'a' has a scale, and the loss mse(.|\n)*one of soft_l1, huber, geman_mcclure",
        ),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], text: str) -> None:
    with pytest.raises(GncompileError, match=text):
        net = nn.Linear(2, 1).double()
        gncompile.residuals(net, "x y", "u", {"a": Term("u", SQUARE.interior(4), **options)})


def test_a_scale_that_float32_cannot_square_is_refused() -> None:
    with pytest.raises(GncompileError, match=r"is 1e-25, and lies from .* in float32(.|\n)*double"):
        term = Term("u", SQUARE.interior(4), loss="soft_l1", scale=1e-25)
        gncompile.residuals(nn.Linear(2, 1), "x y", "u", {"a": term})


def test_the_summary_tells_a_loss_and_its_scale() -> None:
    terms = {
        "plain": Term("u", SQUARE.interior(4)),
        "robust": Term("u - 1", SQUARE.interior(4), loss="soft_l1"),
        "scaled": Term("u - 2", SQUARE.interior(4), loss="huber", scale=0.25),
    }
    problem = gncompile.residuals(nn.Linear(2, 1).double(), "x y", "u", terms)
    told = problem.compile().summary()
    assert all(each in told for each in ("mse", "soft_l1, δ = 1", "huber, δ = 0.25"))


def precise(name: str, r: float, scale: float) -> tuple[mpmath.mpf, mpmath.mpf]:
    """ρ and its slope in 60 digits."""
    with mpmath.workdps(60):
        x, d = mpmath.mpf(r), mpmath.mpf(scale)
        t = x / d
        if name == "soft_l1":
            return x**2 / (mpmath.sqrt(1 + t**2) + 1), x / mpmath.sqrt(1 + t**2)
        if name == "geman_mcclure":
            return x**2 / (2 + 2 * t**2), x / (1 + t**2) ** 2
        inside = abs(x) <= d
        return (x**2 / 2, x) if inside else (d * (abs(x) - d / 2), d * mpmath.sign(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_roots_and_slopes_are_right_up_to_the_largest_float(name: str, dtype: torch.dtype) -> None:
    """As compiled and as plain torch; a slope by autograd too, which the other branch would make NaN.

    3 roundings were found, 10 are allowed, and of a slope also what is far below a rounding of a square's, 1.
    """
    bounds, r = torch.finfo(dtype), Symbol("r", real=True)
    low, high = scales(dtype)
    powers = range(int(math.log10(bounds.tiny)) + 1, int(math.log10(bounds.max)), 7)
    for scale in (2 * low, SCALE, high / 2):
        ends = [scale * (1 + e) for e in (-0.5, -1e-5, 0, 1e-5, 0.5)]
        sizes = torch.tensor([*(10.0**k for k in powers), *ends, bounds.max], dtype=dtype)
        x = torch.cat([-sizes, sizes]).requires_grad_()
        losses, changes = zip(*(precise(name, each, scale) for each in x.tolist()), strict=True)
        roots = [
            mpmath.sign(e) * mpmath.sqrt(2 * loss)
            for e, loss in zip(x.tolist(), losses, strict=True)
        ]
        slopes = [change / root for change, root in zip(changes, roots, strict=True)]
        written = signed_root(r, name, scale)
        compiled = stable(written)
        slope = stable(differentiate(compiled, r))
        found = [plain(written, {r: x}), evaluate(compiled, {r: x})]
        found_slopes = [evaluate(slope, {r: x})]
        if scale == SCALE:
            found_slopes += torch.autograd.grad(found[0].sum(), x)
        for each, wanted, least in (
            *((e, roots, 0.0) for e in found), *((e, slopes, bounds.eps**2) for e in found_slopes)
        ):  # fmt: skip
            exact = torch.tensor([float(w) for w in wanted], dtype=torch.float64)
            torch.testing.assert_close(each.double(), exact, rtol=10 * bounds.eps, atol=least)
        zero = {r: torch.zeros(1, dtype=dtype)}
        assert float(evaluate(compiled, zero)) == 0
        assert float(evaluate(slope, zero)) == pytest.approx(1, abs=bounds.eps)


@pytest.mark.filterwarnings("ignore::gncompile.errors.PrecisionWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOSSES)
def test_outliers_of_any_size_leave_loss_and_gradient_right(name: str, dtype: torch.dtype) -> None:
    """The loss as trained, and the plain module's; the gradient as trained, and by autograd."""
    torch.manual_seed(0)
    line = nn.Linear(1, 1).to(dtype)
    far = torch.finfo(dtype).max ** 0.9
    x, y = (
        torch.linspace(0, 1, 4, dtype=dtype)[:, None],
        torch.tensor([0.1, 5, far, far], dtype=dtype),
    )
    term = Term("u - y", x, fields={"y": y}, loss=name, scale=SCALE)
    problem = gncompile.residuals(line, "x", "u", {"data": term})
    residuals = (line(x)[:, 0] - y).detach().tolist()
    losses, slopes = zip(*(precise(name, r, SCALE) for r in residuals), strict=True)
    batch = problem.batch()
    trainer, given = problem.compile(), batch.pair(1)
    within = pytest.approx(float(sum(losses) / 4), rel=100 * torch.finfo(dtype).eps)
    assert float(trainer.loss(*given)) == within
    assert trainer.terms()["data"] == within
    assert problem.energies()["data"] == within
    objective = problem.network(batch.x, batch.data).square().mean() / 2
    by_autograd = torch.autograd.grad(objective, [line.weight, line.bias])
    wanted = [
        float(sum(s * p for s, p in zip(slopes, at, strict=True)) / 4)
        for at in (x[:, 0].tolist(), [1] * 4)
    ]
    compiled = trainer.gradients(*given)
    for found in (by_autograd, [compiled["net.weight"], compiled["net.bias"]]):
        assert [float(g) for g in found] == pytest.approx(wanted, abs=100 * torch.finfo(dtype).eps)


def close(found: Any, wanted: Tensor) -> None:
    assert float((found - wanted).norm()) <= ROUNDING * float(wanted.norm()) + 1e-13
