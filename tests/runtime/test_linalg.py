"""Damped inverses, against numpy in float64."""

from __future__ import annotations

import numpy
import pytest
import torch

from gncompile.runtime.linalg import bordered, damped_inverse

SIZES = [1, 17, 40, 65, 127, 128, 130]


def moment(size: int, condition: float, dtype: torch.dtype) -> torch.Tensor:
    """A symmetric matrix with eigenvalues from 1 down to ``1/condition``."""
    generator = torch.Generator().manual_seed(size)
    random = torch.randn(size, size, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(random)
    return ((basis * torch.logspace(0, -numpy.log10(condition), size).double()) @ basis.T).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_inverses(size: int, dtype: torch.dtype) -> None:
    m, damping = moment(size, 1e8, dtype), torch.tensor(1e-3, dtype=dtype)
    before, out = m.clone(), torch.full_like(m, float("nan"))
    damped_inverse(m, damping, out)
    expected = numpy.linalg.inv(m.double().numpy() + 1e-3 * numpy.eye(size))
    error = numpy.linalg.norm(out.double().numpy() - expected) / numpy.linalg.norm(expected)
    # Condition number 1e3 times the rounding of sums of up to 130 terms.
    assert error < 20 * 1e3 * torch.finfo(dtype).eps
    assert torch.equal(m, before)


@pytest.mark.parametrize(
    ("size", "whole"), [(1, 8), (9, 16), (128, 136), (500, 504), (505, 520), (1000, 1000)]
)
def test_no_matrix_for_lapack_has_rows_a_power_of_two_apart(size: int, whole: int) -> None:
    assert bordered(size) == whole
    assert bordered(size, 1) == size


def test_what_rounding_makes_indefinite_is_clipped() -> None:
    """Eigenvalues of -0.5 first or last; it become 0, the inverse's 1/c."""
    for negative in (0, 39):
        values = torch.ones(40, dtype=torch.float64)
        values[negative] = -0.5
        out = torch.empty(40, 40, dtype=torch.float64)
        damped_inverse(torch.diag(values), torch.tensor(0.25, dtype=torch.float64), out)
        expected = torch.diag(1 / (values.clamp(min=0) + 0.25))
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_damping_below_rounding_is_that_of_rounding(dtype: torch.dtype) -> None:
    """A matrix of rank 3: of its other eigenvalues, 0, only rounding is left, of either sign."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    m = (root @ root.T).to(dtype)
    out = torch.empty_like(m)
    damped_inverse(m, torch.tensor(1e-30, dtype=dtype), out)
    values = torch.linalg.eigvalsh(out.double())
    floor = torch.finfo(dtype).eps * float(m.trace())
    assert float(values[0]) > 0
    # Rounding shifts a zero eigenvalue by up to about half the floor, so its inverse by up to a factor of 2.
    assert 0.5 < float(values[-1]) * floor < 2


@pytest.mark.parametrize("place", [0, 39])
def test_what_is_not_finite_gives_nan(place: int) -> None:
    m, out = torch.eye(40), torch.zeros(40, 40)
    m[place, place] = float("nan")
    damped_inverse(m, torch.tensor(0.1), out)
    assert bool(out.isnan().all())
