"""What these tests add to Triton's interpreter agrees with torch bit by bit."""

import torch
import triton
import triton.language as tl


@triton.jit
def arithmetic(x, y, sums, products, narrowed, wide, COUNT: tl.constexpr):
    at = tl.arange(0, COUNT)
    tl.store(sums + at, tl.load(x + at) + tl.load(y + at))
    tl.store(products + at, tl.load(x + at) * tl.load(y + at))
    tl.store(narrowed + at, tl.load(wide + at))


@triton.jit
def dot(x, y, out):
    at = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + at, tl.dot(tl.load(x + at), tl.load(y + at), input_precision="ieee"))


def test_bfloat16_is_rounded_to_nearest():
    x, y = torch.randn(2, 256).bfloat16()
    wide = torch.randn(256) * 10.0 ** torch.randint(-30, 30, (256,))
    wide[:4] = torch.tensor([1.9999999, 1.00390625, 1.01171875, float("nan")])  # up, ties, NaN
    sums, products, narrowed = torch.empty(3, 256, dtype=torch.bfloat16)
    arithmetic[(1,)](x, y, sums, products, narrowed, wide, COUNT=256)
    assert torch.equal(sums, x + y)
    assert torch.equal(products, x * y)
    assert torch.equal(narrowed[:3], wide[:3].bfloat16())
    assert bool(narrowed[3].isnan())
    assert torch.equal(narrowed[4:], wide[4:].bfloat16())


def test_bfloat16_dot_is_exact_in_its_products():
    x, y, out = torch.randn(16, 16).bfloat16(), torch.randn(16, 16).bfloat16(), torch.empty(16, 16)
    dot[(1,)](x, y, out)
    torch.testing.assert_close(out, x.float() @ y.float(), rtol=1e-6, atol=1e-6)
