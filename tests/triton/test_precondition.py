"""Directions ``-G⁻¹ ∇ Q⁻¹`` of layers of different sizes against float64, in the interpreter."""

from dataclasses import replace

import torch
from comparison import assert_close
from matrices import TOLERANCE, assert_surroundings_untouched, matrix, result, symmetric

from gncompile.triton_kernels.gemm import Settings
from gncompile.triton_kernels.precondition import (
    Layer,
    grouped_precondition,
    grouped_precondition_reference,
)

SMALL = Settings(16, 16, 16)


def layers(dtype: torch.dtype) -> list[Layer]:
    """Hidden layers with a full G⁻¹, one of a single unit; outputs with a diagonal and a scalar one."""
    sizes = {
        (17, 33): "full",
        (1, 20): "full",
        (33, 18): "full",
        (6, 7): "diagonal",
        (3, 40): "scalar",
    }
    factors = {
        "full": lambda d: symmetric(d, dtype),
        "diagonal": lambda d: torch.randn(d, dtype=dtype),
        "scalar": lambda d: torch.randn((), dtype=dtype),
    }
    return [
        Layer(factors[kind](d), matrix(d, e, dtype), symmetric(e, dtype), result(d, e, dtype))
        for (d, e), kind in sizes.items()
    ]


def direction(layer: Layer) -> torch.Tensor:
    g = layer.g_inv.double()
    product = layer.grad.double() @ layer.q_inv.double()
    return -(g @ product if g.dim() == 2 else (g[:, None] if g.dim() else g) * product)


def test_all_layers():
    for dtype in (torch.float32, torch.float64):
        given = layers(dtype)
        launches = grouped_precondition.launches(given, settings=SMALL)
        assert len(launches) == 4  # two for the full ones, one each for the others
        for launch in launches:
            launch.run()
        for layer in given:
            # Two products: the error of the first is multiplied by the second's.
            assert_close(layer.out, direction(layer), 2 * TOLERANCE[dtype])
            assert_surroundings_untouched(layer.out)


def test_one_layer_with_scratch():
    layer = layers(torch.float32)[0]
    scratch = result(17, 33)
    grouped_precondition([replace(layer, scratch=scratch)], settings=SMALL)
    assert_close(layer.out, direction(layer), 2 * TOLERANCE[torch.float32])
    assert_close(
        scratch, layer.grad.double() @ layer.q_inv.double(), TOLERANCE[torch.float32], "scratch"
    )


def test_the_reference_agrees():
    given = layers(torch.float64)
    grouped_precondition_reference(given)
    for layer in given:
        assert_close(layer.out, direction(layer), TOLERANCE[torch.float64])
