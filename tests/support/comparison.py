"""Compare two tensors by relative RMS and maximum error, and say where they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

# Float64 rounding of a few hundred operations stays near 1e-13 of a tensor's scale; a wrong or
# missing term in a rule shows at 1e-3 and above. 1e-9 is far from both.
EXACT = 1e-9

# Test networks have activations of size one. A tensor below this scale is all cancellation or
# saturation, so it is compared absolutely, at ``rtol * SMALLEST_SCALE``.
SMALLEST_SCALE = 1e-6


def rms(t: Tensor) -> float:
    """Root of the mean square of all entries; 0 for an empty tensor."""
    return float(t.double().square().mean().sqrt()) if t.numel() else 0.0


def difference(got: Tensor, expected: Tensor) -> tuple[float, float]:
    """Relative RMS and relative maximum error of ``got``; infinite if ``got`` is not finite."""
    if not got.numel():
        return 0.0, 0.0
    got, expected = got.detach(), expected.detach()
    error = (got.double() - expected.double()).abs()
    if not bool(error.isfinite().all()):
        return float("inf"), float("inf")
    largest = float(expected.double().abs().max())
    return (
        rms(error) / max(rms(expected), SMALLEST_SCALE),
        float(error.max()) / max(largest, SMALLEST_SCALE),
    )


def assert_close(got: Tensor, expected: Tensor, rtol: float = EXACT, what: str = "tensor") -> None:
    """Raise AssertionError with the worst index, both values there and their ratio."""
    assert got.shape == expected.shape, (
        f"{what}: shapes differ\n  expected: {list(expected.shape)}\n  got:      {list(got.shape)}"
    )
    relative_rms, relative_max = difference(got, expected)
    if relative_rms <= rtol and relative_max <= rtol:
        return
    error = (got.detach().double() - expected.detach().double()).abs().nan_to_num(nan=float("inf"))
    worst = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    left, right = float(got[worst]), float(expected[worst])
    ratio = left / right if right else float("inf")
    raise AssertionError(
        f"{what}: relative RMS error {relative_rms:.2e}, relative maximum {relative_max:.2e}, "
        f"allowed {rtol:.0e}\n"
        f"  worst at {list(worst)} of {list(got.shape)}\n"
        f"  expected: {right!r}\n  got:      {left!r}\n  ratio:    {ratio:.6g}"
    )


def standard_scores(got: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Deviations from ``mean`` in standard deviations; entries without variance must agree.

    Without variance means below rounding: entries of ±1 projections whose square is always one.
    """
    scale = max(rms(mean), SMALLEST_SCALE)
    error = variance.sqrt()
    certain = error < 1e-9 * scale
    assert_close(got[certain], mean[certain], rtol=EXACT * 10, what="entries that do not vary")
    return (got - mean)[~certain] / error[~certain]


class Factors(Protocol):
    """What the tests read of a layer's Kronecker factors."""

    @property
    def input(self) -> Tensor: ...

    @property
    def output(self) -> Tensor: ...


def assert_tensors(
    got: Mapping[str, Tensor], expected: Mapping[str, Tensor], rtol: float = EXACT, what: str = ""
) -> None:
    """The same names, and tensors that agree."""
    assert sorted(got) == sorted(expected), f"expected: {sorted(expected)}\ngot: {sorted(got)}"
    for name, value in expected.items():
        assert_close(got[name], value, rtol, f"{what} of {name!r}".strip())


def assert_outputs(
    factors: Mapping[str, Factors], expected: Mapping[str, Tensor], rtol: float = EXACT
) -> None:
    """The same layers, and output factors ``Ḡ`` that agree."""
    assert_tensors({name: f.output for name, f in factors.items()}, expected, rtol, "output factor")


def assert_inputs(
    factors: Mapping[str, Factors], expected: Mapping[str, Tensor], rtol: float = EXACT
) -> None:
    """The same layers, and input factors ``Q`` that agree."""
    assert_tensors({name: f.input for name, f in factors.items()}, expected, rtol, "input factor")
