"""Every matrix kernel on the device against float64, at sizes that are multiples of nothing."""

from __future__ import annotations

import os

import pytest
import torch
from comparison import assert_close
from torch import Tensor

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402, F401 - where Triton's interpreter looks for it

from gncompile.triton_kernels.congruence import congruence  # noqa: E402
from gncompile.triton_kernels.elementwise import elementwise  # noqa: E402
from gncompile.triton_kernels.gemm import gemm  # noqa: E402
from gncompile.triton_kernels.inverse import Inverse, newton_schulz, plan_inverses  # noqa: E402
from gncompile.triton_kernels.launches import padded_empty  # noqa: E402
from gncompile.triton_kernels.precondition import Layer, grouped_precondition  # noqa: E402
from gncompile.triton_kernels.reduce import reduce  # noqa: E402
from gncompile.triton_kernels.syrk import cross_moment, syrk  # noqa: E402

KINDS = {
    "float64": (torch.float64, "highest"),
    "highest": (torch.float32, "highest"),
    "high": (torch.float32, "high"),
    "medium": (torch.float32, "medium"),
    "bfloat16": (torch.bfloat16, "highest"),
}
if os.environ.get("TRITON_INTERPRET") == "1":
    del KINDS["bfloat16"]  # which the interpreter multiplies as bit patterns
# Sums of n ≤ 1000 products rounded to float32 cost about √n · 6e-8; three TF32 parts lose a little more.
# TF32 itself cuts up to 2⁻¹⁰ off each operand. bfloat16 operands are multiplied exactly.
TOLERANCE = {"float64": 1e-13, "highest": 5e-6, "high": 1e-5, "medium": 3e-3, "bfloat16": 5e-6}
SHAPES = [(1, 1, 1), (17, 33, 65), (63, 1, 130), (130, 257, 97), (1000, 201, 31)]


@triton.jit
def square_and_double(x):
    return x * x, x + x


@triton.jit
def square_of(x):
    return (x * x,)


def padded(rows: int, columns: int, kind: str, device: torch.device) -> Tensor:
    """Normal numbers in rows that begin every 16 elements, NaN between them."""
    dtype = KINDS[kind][0]
    view = padded_empty(rows, columns, torch.empty(0, dtype=dtype, device=device))
    base = view if view._base is None else view._base
    base.fill_(torch.nan)
    return view.copy_(torch.randn(rows, columns, dtype=torch.float64))


def empty(rows: int, columns: int, kind: str, device: torch.device) -> Tensor:
    """Where a result goes, NaN until then; float32 for bfloat16 operands."""
    return padded(rows, columns, "highest" if kind == "bfloat16" else kind, device).fill_(torch.nan)


each_kind = pytest.mark.parametrize("kind", list(KINDS))


@each_kind
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("turn_a", "turn_b"), [(False, True), (True, False)])
def test_products(shape, turn_a, turn_b, kind, device):
    m, n, k = shape
    a = padded(*((k, m) if turn_a else (m, k)), kind, device)
    b = padded(*((n, k) if turn_b else (k, n)), kind, device)
    out, doubled, bias = (empty(r, n, kind, device) for r in (m, m, 1))
    bias = bias[0].copy_(torch.randn(n))
    gemm(
        a, b, out, transpose_a=turn_a, transpose_b=turn_b, bias=bias, epilogue=square_and_double,
        outputs=(doubled,), precision=KINDS[kind][1],
    )  # fmt: skip
    left, right = (a.mT if turn_a else a).double(), (b.mT if turn_b else b).double()
    h = left @ right + bias.double()
    assert_close(doubled, 2 * h, TOLERANCE[kind])
    assert_close(out, h**2, 2 * TOLERANCE[kind])


@each_kind
@pytest.mark.parametrize(
    ("samples", "size"), [(1, 1), (63, 17), (1000, 33), (257, 301), (5000, 31)]
)
def test_second_moments(samples, size, kind, device):
    a, out = padded(samples, size, kind, device), empty(size + 1, size + 1, kind, device)
    syrk(a, out, alpha=1 / samples, homogeneous=True, precision=KINDS[kind][1])
    values = torch.cat([a.double(), torch.ones(samples, 1, device=device).double()], dim=1)
    assert_close(out, values.mT @ values / samples, TOLERANCE[kind])
    assert torch.equal(out, out.mT)


@each_kind
def test_gradients(kind, device):
    v, x = padded(999, 65, kind, device), padded(999, 130, kind, device)
    out = empty(65, 131, kind, device)
    cross_moment(v, x, out, alpha=1 / 999, homogeneous=True, precision=KINDS[kind][1])
    values = torch.cat([x.double(), torch.ones(999, 1, device=device).double()], dim=1)
    assert_close(out, v.double().mT @ values / 999, TOLERANCE[kind])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bfloat16"])
@pytest.mark.parametrize("structure", ["full", "diagonal", "scalar"])
def test_congruences(structure, kind, device):
    w, b = padded(97, 130, kind, device), padded(257, 130, kind, device)
    root = padded(97, 97, kind, device)
    g = (root @ root.mT / 97).to(root.dtype)
    full = {"full": g, "diagonal": g.diagonal().diag(), "scalar": g[0, 0] * torch.eye(97).to(g)}[
        structure
    ]
    given = {"full": g, "diagonal": g.diagonal().clone(), "scalar": g[0, 0].clone()}[structure]
    out = empty(130, 130, kind, device)
    congruence(w, given, b, out, precision=KINDS[kind][1])
    w, b, full = (t.double() for t in (w, b, full))
    assert_close(out, (w.mT @ full @ w) * (b.mT @ b / 257), 3 * TOLERANCE[kind])
    assert torch.equal(out, out.mT)


@pytest.mark.parametrize("shape", [(), (1,), (257,), (65, 131), (1000, 784), (3, 65, 33)], ids=str)
@pytest.mark.parametrize("dtype", sorted({dtype for dtype, _ in KINDS.values()}, key=str), ids=str)
def test_elementwise_and_sums(shape, dtype, device):
    x = torch.randn(shape, dtype=torch.float64).to(device, dtype)
    square, double = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    elementwise(square_and_double, (x,), (square, double))
    # Computed in float32 or wider, then rounded to the type.
    rounding = 2 * torch.finfo(dtype).eps
    assert_close(square, x.double() ** 2, rounding)
    assert torch.equal(double, x + x)
    if x.dim() <= 2:
        total = torch.full((), torch.nan, device=device, dtype=torch.float64)
        reduce(square_of, (x,), total)
        # Squares are rounded to float32, and added in float64.
        assert_close(total, (x.double() ** 2).sum(), 1e-13 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "bfloat16"])
def test_directions_of_layers_of_different_sizes_and_kinds(kind, device):
    layers, expected = [], []
    for rows, columns, dims in ((33, 65, 2), (1, 17, 2), (130, 31, 0), (20, 5, 1)):
        grad, q, g = (
            padded(*s, kind, device) for s in ((rows, columns), (columns,) * 2, (rows,) * 2)
        )
        given = g if dims == 2 else g[:, 0].clone() if dims else g[0, 0].clone()
        full = given if dims == 2 else given.diag() if dims else given * torch.eye(rows).to(given)
        layers.append(Layer(given, grad, q, empty(rows, columns, kind, device)))
        expected.append(-(full.double() @ grad.double() @ q.double()))
    grouped_precondition(layers, precision=KINDS[kind][1])
    for layer, each in zip(layers, expected, strict=True):
        assert_close(layer.out, each, 3 * TOLERANCE[kind])


@pytest.mark.parametrize("size", [1, 17, 130, 301])
def test_inverses_refined_from_a_near_guess(size, device):
    root = torch.randn(size, 2 * size, dtype=torch.float64)
    exact = root @ root.mT / (2 * size)
    moved = torch.linalg.inv(exact * 1.05 + 0.1 * torch.eye(size).double())
    a, x = (t.float().to(device) for t in (exact, moved))
    newton_schulz(plan_inverses([Inverse(a, x, 0.1)], precision="high"), iterations=3)
    expected = torch.linalg.inv(exact + 0.1 * torch.eye(size).double())
    # Condition 30 at most: eigenvalues of the random matrix are below 3, the damping is 0.1.
    assert_close(x.cpu(), expected, 1e-4)


def test_repeated_launches_are_bitwise_equal(device):
    a = padded(5000, 65, "high", device)
    results = [empty(65, 65, "high", device) for _ in range(3)]
    for out in results:
        syrk(a, out, precision="high")
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_float_arguments_keep_float64(device):
    """A factor of one third passes through the launcher as float64, not as float32."""
    a, out = padded(3, 16, "float64", device), empty(16, 16, "float64", device)
    syrk(a, out, alpha=1 / 3)
    assert_close(out, a.mT @ a / 3, 1e-14)
