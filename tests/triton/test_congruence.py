"""KFRA's step ``(Wᵀ G W) ⊙ E[b bᵀ]`` against float64, in the interpreter."""

import pytest
import torch
from comparison import assert_close
from matrices import TOLERANCE, assert_surroundings_untouched, matrix, result, symmetric

from gncompile.errors import InternalError
from gncompile.triton_kernels.congruence import Settings, congruence, congruence_reference

ONE = Settings(16, 16, 16)
SPLIT = Settings(16, 16, 16, split=2)
BOTH = pytest.mark.parametrize("settings", [ONE, SPLIT], ids=["one part", "two parts"])


def block(structure: str, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """G as a scalar, a diagonal or a full symmetric matrix."""
    if structure == "full":
        return symmetric(size, dtype)
    return torch.randn(() if structure == "scalar" else (size,)).to(dtype)


def dense(g: torch.Tensor, size: int) -> torch.Tensor:
    g = g.double()
    return g if g.dim() == 2 else torch.diag(g) if g.dim() else g * torch.eye(size).double()


@BOTH
@pytest.mark.parametrize("structure", ["scalar", "diagonal", "full"])
@pytest.mark.parametrize(("samples", "rows", "size"), [(1, 1, 17), (40, 20, 33), (65, 17, 1)])
def test_step(samples, rows, size, structure, settings):
    w, b, g = matrix(rows, size), matrix(samples, size), block(structure, rows)
    out = result(size, size)
    congruence(w, g, b, out, settings=settings)
    expected = w.double().mT @ dense(g, rows) @ w.double()
    expected *= b.double().mT @ b.double() / samples
    assert_close(out, expected, TOLERANCE[torch.float32])
    assert torch.equal(out, out.mT)
    assert_surroundings_untouched(out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_types(dtype):
    """bfloat16 in W and the slopes; G W is rounded once more on its way."""
    w, b, g = matrix(20, 33, dtype), matrix(40, 33, dtype), block("full", 20, dtype)
    out = result(33, 33, torch.promote_types(dtype, torch.float32))
    congruence(w, g, b, out, settings=ONE)
    expected = w.double().mT @ g.double() @ w.double() * (b.double().mT @ b.double() / 40)
    assert_close(out, expected, {torch.bfloat16: 2**-8, torch.float64: 1e-13}[dtype])


def test_without_slopes_it_is_the_symmetric_product():
    w, g, out = matrix(20, 33), block("full", 20), result(33, 33)
    congruence(w, g, None, out, settings=ONE)
    assert_close(out, w.double().mT @ g.double() @ w.double(), TOLERANCE[torch.float32])
    assert torch.equal(out, out.mT)


def test_scratch_for_the_product_of_a_full_block_is_used():
    w, g, b = matrix(20, 33), block("full", 20), matrix(40, 33)
    out, scratch = result(33, 33), result(20, 33)
    congruence(w, g, b, out, scratch=scratch, settings=ONE)
    assert_close(scratch, g.double() @ w.double(), TOLERANCE[torch.float32])
    assert_surroundings_untouched(scratch)


def test_the_reference_and_the_default_settings_agree():
    w, b, g = matrix(20, 33), matrix(40, 33), block("full", 20)
    out, expected = result(33, 33), torch.empty(33, 33, dtype=torch.float64)
    congruence(w, g, b, out)
    congruence_reference(w.double(), g.double(), b.double(), expected)
    assert_close(out, expected, TOLERANCE[torch.float32])


def test_tiles_that_are_not_square_are_refused():
    with pytest.raises(InternalError, match="square tiles"):
        congruence(
            matrix(3, 4), block("full", 3), None, result(4, 4), settings=Settings(16, 32, 16)
        )
