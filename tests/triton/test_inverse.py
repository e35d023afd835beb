"""Newton-Schulz inverses against Cholesky in float64: convergence, warm starts, guard and restart."""

import itertools

import pytest
import torch
from matrices import assert_surroundings_untouched, matrix

from gncompile.errors import InternalError
from gncompile.triton_kernels.inverse import (
    Inverse,
    cost,
    inverse_reference,
    newton_schulz,
    plan_inverses,
    space,
)
from gncompile.triton_kernels.settings import MatrixSettings

SMALL = MatrixSettings(32, 32, 32)
WIDE = MatrixSettings(64, 64, 32)
SIZES = (1, 17, 65, 130)


def factor(size, condition, dtype):
    """A symmetric positive definite matrix with eigenvalues from 1/condition to 1, evenly by logarithm."""
    basis, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
    lowest = -torch.log10(torch.tensor(float(condition))).item()
    values = torch.logspace(lowest, 0, size, dtype=torch.float64)
    return in_buffer((basis * values) @ basis.T, dtype)


def in_buffer(values, dtype):
    """The symmetric part of ``values`` within a buffer of NaN."""
    view = matrix(*values.shape, dtype)
    return view.copy_((values + values.T) / 2)


def refine(problems, settings=SMALL, precision="highest", **options):
    plan = plan_inverses(problems, settings=settings, precision=precision)
    newton_schulz(plan, **options)
    return plan.tripped.tolist()


def residual(a, x, damping):
    size = len(a)
    moved = a.double() + damping * torch.eye(size, dtype=torch.float64)
    return torch.linalg.matrix_norm(torch.eye(size, dtype=torch.float64) - moved @ x.double())


def test_several_sizes_in_one_plan():
    factors = [factor(size, 100, torch.float32) for size in SIZES]
    exact = [inverse_reference(a.double(), 0.01) for a in factors]
    # Guesses with residuals of norm 1/2.
    guesses = [in_buffer(x * (1 + 0.5 / len(x) ** 0.5), torch.float32) for x in exact]
    damping = torch.tensor(0.01)
    problems = [Inverse(a, x, damping) for a, x in zip(factors, guesses, strict=True)]
    assert refine(problems, WIDE) == [0] * len(SIZES)
    for a, x, wanted in zip(factors, guesses, exact, strict=True):
        start = 0.5 / len(a) ** 0.5
        error = torch.linalg.matrix_norm(x - wanted) / torch.linalg.matrix_norm(wanted)
        # cond·eps: 100 · 6e-8; the rest is the fourth power of the relative error of the guess.
        assert error <= start**4 * 1.01 + 6e-6
        assert torch.equal(x, x.T)
        assert_surroundings_untouched(x)


def test_every_iteration_squares_the_residual():
    a = factor(17, 50, torch.float64)
    noise = torch.randn(17, 17, dtype=torch.float64)
    exact = inverse_reference(a, 0.02)
    root = torch.linalg.cholesky(exact)
    # R (I + S) Rᵀ with a symmetric S: its residual is similar to -S.
    symmetric = 0.05 * (noise + noise.T) / torch.linalg.matrix_norm(noise)
    x = in_buffer(root @ (torch.eye(17, dtype=torch.float64) + symmetric) @ root.T, torch.float64)
    residuals = [residual(a, x, 0.02)]
    for _ in range(3):
        assert refine([Inverse(a, x, 0.02)], iterations=1) == [0]
        residuals.append(residual(a, x, 0.02))
    for before, after in itertools.pairwise(residuals):
        assert after <= before**2 * 1.01 + 1e-13
    assert residuals[-1] < 1e-8


def test_a_warm_start_follows_a_moving_average():
    size, damping = 33, torch.tensor(1e-2)
    batches = torch.randn(8, 200, size)
    a = in_buffer(batches[0].T @ batches[0] / 200, torch.float32)
    x = in_buffer(inverse_reference(a.double(), 1e-2), torch.float32)
    plan = plan_inverses([Inverse(a, x, damping)], settings=SMALL, precision="highest")
    launches = newton_schulz.launches(plan)
    for batch in batches[1:]:
        a.mul_(0.95).add_(batch.T @ batch / 200, alpha=0.05)
        damping.mul_(0.9)  # read anew by every launch
        for launch in launches:
            launch.run()
        assert plan.tripped.tolist() == [0]
        exact = inverse_reference(a.double(), damping.double())
        error = torch.linalg.matrix_norm(x - exact) / torch.linalg.matrix_norm(exact)
        # A moves by 5 % of a sampling error of √(33/200): the residual is about 0.1, its fourth power 1e-4.
        assert error < 2e-4


def test_ill_conditioned():
    a = factor(65, 1e4, torch.float32)
    exact = inverse_reference(a.double(), 0.0)
    x = in_buffer(exact * 1.02, torch.float32)
    assert refine([Inverse(a, x, 0.0)], WIDE, iterations=3) == [0]
    by_cholesky = inverse_reference(a, 0.0)
    norm = torch.linalg.matrix_norm(exact)
    error = torch.linalg.matrix_norm(x - exact) / norm
    # As good as the rounding of A allows: cond · eps is 6e-4.
    assert error < 6e-4
    assert error < 10 * torch.linalg.matrix_norm(by_cholesky - exact) / norm


@pytest.mark.parametrize("guess", ["zero", "indefinite", "huge", "nan"])
def test_a_bad_guess_trips_and_starts_afresh(guess):
    a = factor(17, 20, torch.float64)
    exact = inverse_reference(a, 0.05)
    starts = {"zero": 0 * exact, "indefinite": -exact, "huge": 3 * exact, "nan": torch.nan * exact}
    x = in_buffer(starts[guess], torch.float64)
    assert refine([Inverse(a, x, 0.05)], iterations=2) == [1]
    values = torch.linalg.eigvalsh(x)
    assert values.min() > 0  # definite, and below the inverse
    assert torch.linalg.eigvalsh(exact - x).min() > -1e-12
    x.copy_(starts[guess])
    # log2(cond · √n) + 5, as the module says.
    assert refine([Inverse(a, x, 0.05)], iterations=12) == [1]
    torch.testing.assert_close(x, exact, rtol=1e-9, atol=1e-9)


def test_a_matrix_that_is_not_finite_is_reported():
    a = torch.full((5, 5), torch.nan)
    x = torch.eye(5)
    assert refine([Inverse(a, x, 0.1)]) == [1]
    assert bool(x.isnan().any())


def test_what_is_refused():
    eye = torch.eye(4)
    with pytest.raises(InternalError, match="symmetric matrices with contiguous rows"):
        plan_inverses([Inverse(eye, torch.ones(4, 8)[:, ::2], 0.1)])
    with pytest.raises(InternalError, match="at least one"):
        plan_inverses([])
    plan = plan_inverses([Inverse(eye, eye.clone(), 0.1)], settings=SMALL)
    with pytest.raises(InternalError, match="between 0 and 1"):
        newton_schulz(plan, limit=1.0)


def test_cost_and_space():
    assert cost(100, iterations=2) == (6_000_000, 12 * 10_000 * 4)
    tiles = space(256, torch.float32, "high")
    assert tiles
    assert all(tile.block_m == tile.block_n for tile in tiles)
