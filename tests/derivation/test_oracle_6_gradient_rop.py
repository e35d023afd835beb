"""Oracle 6: gradient, directional derivative and the Gauss-Newton quadratic of the compiled program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import oracles
import torch
from architectures import Act, Fork, Linear, normal
from comparison import assert_close, assert_tensors
from hypothesis import given, settings
from problems import EVERY_LOSS, Case, Problem, cases
from torch import Tensor

import gncompile

FIXED = Case(
    5,
    (Linear(6), Act("tanh"), Fork("sum", ((), (Linear(4), Act("silu"), Linear(6)))), Linear(3)),
    "cross_entropy",
    batch=7,
    seed=9,
)


DAMPING, L2 = 0.3, 0.02


def compiled(problem: Problem, backend: str, **options: float) -> Any:
    """The trainer; it has not stepped, so the parameters are the test's."""
    model, loss, x, _ = problem
    return gncompile.compile(model, loss, x, "kfra", backend=backend, **options)


def damped(problem: Problem, backend: str) -> Any:
    """The trainer with λ = 0.3 and, in all parameters, η = 0.02."""
    return compiled(problem, backend, damping=DAMPING, l2=L2)


def directions(problem: Problem, seed: int, count: int = 2) -> list[dict[str, Tensor]]:
    """Random directions in parameter space."""
    generator = torch.Generator().manual_seed(seed)
    names = oracles.parameters(problem.model)
    return [{k: normal(generator, *p.shape) for k, p in names.items()} for _ in range(count)]


@given(case=cases(losses=tuple(EVERY_LOSS)))
def test_loss_and_gradient_are_those_of_autograd(backend: str, case: Case) -> None:
    problem = case.build()
    trainer = compiled(problem, backend)
    value = torch.as_tensor(trainer.loss(problem.x, problem.y)).double()
    assert_close(value, oracles.mean_loss(*problem).detach(), what="loss")
    got = trainer.gradients(problem.x, problem.y)
    assert_tensors(got, oracles.gradient(*problem), what="gradient")


@given(case=cases())
@settings(max_examples=12)
def test_directional_derivative_and_quadratic(backend: str, case: Case) -> None:
    problem = case.build()
    trainer = damped(problem, backend)
    along = directions(problem, case.seed)
    r_z = trainer.rop(problem.x, along[0])
    assert_close(r_z, oracles.directional_output(problem.model, problem.x, along[0]), what="r_z")
    M, b = trainer.quadratic(problem.x, problem.y, along)
    products, slopes = oracles.gauss_newton_products(*problem, along)
    decay = flat(along) @ flat([oracles.parameters(problem.model)])[0]
    assert_close(b, slopes + L2 * decay, what="b")
    assert_close(M, products + (DAMPING + L2) * gram(along), what="M")


def flat(along: Sequence[dict[str, Tensor]]) -> Tensor:
    """One row for each direction, all parameters in it."""
    return torch.stack([torch.cat([p.flatten() for p in d.values()]) for d in along])


def gram(along: Sequence[dict[str, Tensor]]) -> Tensor:
    """``d_iᵀ d_j``."""
    return flat(along) @ flat(along).T


def test_slope_and_curvature_by_finite_differences(backend: str) -> None:
    """Steps along one direction change the model's own parameters, which the trainer shares."""
    problem = FIXED.build()
    trainer = damped(problem, backend)
    (d,) = directions(problem, seed=10, count=1)
    M, b = trainer.quadratic(problem.x, problem.y, [d])
    step = 1e-5
    values, outputs = [], []
    for sign in (1.0, -2.0, 1.0):
        decay = flat([oracles.parameters(problem.model)]).square().sum()
        values.append(float(trainer.loss(problem.x, problem.y) + L2 / 2 * decay))
        outputs.append(problem.model(problem.x).detach())
        with torch.no_grad():
            for name, p in problem.model.named_parameters():
                p.add_(d[name], alpha=sign * step)
    _, ahead, behind = values
    slope = torch.tensor([(ahead - behind) / (2 * step)], dtype=torch.float64)
    # Truncation step² = 1e-10 times the third derivative, rounding 1e-16 / step = 1e-11.
    assert_close(b, slope, rtol=1e-6, what="b by differences of the loss")
    r_z = (outputs[1] - outputs[2]) / (2 * step)
    H = oracles.output_hessian(problem.loss, outputs[0], problem.y)
    product = (torch.einsum("nk,nkl,nl->", r_z, H, r_z) / len(r_z)).reshape(1, 1)
    expected = product + (DAMPING + L2) * gram([d])
    assert_close(M, expected, rtol=1e-6, what="M by differences of the output")


def test_any_batch_size_after_compiling(backend: str) -> None:
    problem = FIXED.build()
    trainer = compiled(problem, backend)
    for batch in (1, 2, 33, 5):
        case = Case(FIXED.width, FIXED.chain, FIXED.loss, batch, FIXED.seed)
        _, loss, x, y = case.build()
        expected = oracles.gradient(problem.model, loss, x, y)
        assert_tensors(trainer.gradients(x, y), expected, what=f"gradient at N={batch}")
