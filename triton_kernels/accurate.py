"""Elementary functions of float32 and float64 tiles that keep their relative accuracy everywhere.

Triton's language has ``exp, log, sin, cos, sqrt, erf`` only, and its float32 ``exp`` is the hardware's
approximation of ``2^y`` at a rounded ``y = x log2(e)``: 45 ulp wrong at ``x = 88``. The functions here are
made of additions, multiplications, divisions, selections and those of the primitives that are accurate, so
they are the same in the interpreter and on every device, apart from fused multiply-adds.

Methods: ``exp`` and ``expm1`` reduce by ``x = n ln 2 + r`` with ln 2 in two parts (Cody and Waite);
``atan`` by ``atan x = π/4 + atan((x - 1)/(x + 1))`` and ``π/2 - atan(1/x)``; ``erfc`` is
``e^(-x²)`` with the rounding error of ``x²`` carried along, times a rational factor. The polynomials are
derived in ``fit_polynomials.py``. The others follow by identities that do not cancel.

NaN passes through; ±0 and ±∞ go where the mathematics says, odd functions keep the sign of zero. Measured
against mpmath over the whole range, subnormal results included: at most 4 ulp, exceptions with their reason
in ``tests/triton/test_functions.py``. On a device a division adds up to 2 ulp in float32, and ``tl.log``,
``tl.sin``, ``tl.cos``, ``tl.erf`` are the vendor's (2 ulp; subnormal float32 arguments count as zero).

Why ``tl.full``: a Python number is exact as operand of ``+ - * /``, but becomes float32 in ``tl.where``.
"""

from __future__ import annotations

from gncompile.triton_kernels import polynomials
from gncompile.triton_kernels.language import tl, triton


@triton.jit
def constant(like, value: tl.constexpr):
    """A tile of ``value`` with the shape and dtype of ``like``, exact in float64 too."""
    return tl.full(like.shape, value, like.dtype)


@triton.jit
def with_sign(magnitude, x):
    """``magnitude`` where ``x > 0``, ``-magnitude`` where ``x < 0``, ``x`` itself where it is ±0 or NaN."""
    return tl.where(x > 0, magnitude, tl.where(x < 0, -magnitude, x))


@triton.jit
def sign(x):
    """``x / |x|``; ±0 where ``x`` is."""
    return with_sign(constant(x, 1.0), x)


@triton.jit
def select(c, u, v):
    """``u`` where ``c > 0``, else ``v``, also where ``c`` is NaN: by which guards tell what is finite."""
    return tl.where(c > 0, u, v)


@triton.jit
def step(c, above: tl.constexpr, below: tl.constexpr):
    """The number ``above`` where ``c > 0``, else ``below``, also where ``c`` is NaN."""
    return select(c, constant(c, above), constant(c, below))


@triton.jit
def sqrt(x):
    """Correctly rounded."""
    if x.dtype == tl.float64:
        y = tl.sqrt(x)
    else:
        y = tl.sqrt_rn(x)  # tl.sqrt approximates in float32
    return y


@triton.jit
def hypot(a, b):
    """``√(a² + b²)`` as ``m √(1 + (n/m)²)`` of the larger and the smaller magnitude: does not overflow."""
    a, b = tl.abs(a), tl.abs(b)
    larger = tl.where(a > b, a, b)
    smaller = tl.where(a > b, b, a)
    ratio = tl.where(smaller == larger, constant(larger, 1.0), smaller / larger)  # also 0/0 and ∞/∞
    return larger * sqrt(1.0 + ratio * ratio)


# Exponentials ---------------------------------------------------------------------------------------------


@triton.jit
def split_exponent(x, low):
    """``n`` and ``e^r - 1``, where ``x + low = n ln 2 + r`` with an integer ``n`` and ``|r| <= ln(2)/2``."""
    n = tl.floor(x * 1.4426950408889634 + 0.5)
    if x.dtype == tl.float64:
        r = (x - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    else:
        r = (x - n * 0.693359375) - n * -2.12194440e-4
    r += low
    return n, r + r * r * polynomials.exp_tail(r)


@triton.jit
def power_of_two(n):
    """``2^n`` of integral ``n`` within the range of normal exponents, written into the exponent bits."""
    if n.dtype == tl.float64:
        y = ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        y = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return y


@triton.jit
def exp_sum(x, low):
    """``e^(x + low)`` for a correction ``|low| << 1``."""
    if x.dtype == tl.float64:
        bounded = tl.minimum(tl.maximum(x, -750.0), 710.0)  # beyond: 0 and inf
    else:
        bounded = tl.minimum(tl.maximum(x, -110.0), 90.0)
    n, growth = split_exponent(bounded, low)
    half = tl.floor(n * 0.5)  # 2^n itself may be subnormal or infinite where the result is neither
    y = (1.0 + growth) * power_of_two(half) * power_of_two(n - half)
    return tl.where(x == x, y, x)


@triton.jit
def exp(x):
    """``e^x``."""
    return exp_sum(x, 0.0)


@triton.jit
def expm1(x):
    """``e^x - 1``, accurate near zero."""
    if x.dtype == tl.float64:
        bounded = tl.minimum(tl.maximum(x, -750.0), 709.9)
    else:
        bounded = tl.minimum(tl.maximum(x, -110.0), 88.9)
    n, growth = split_exponent(bounded, 0.0)
    scale = power_of_two(tl.maximum(n, -60.0) - 1.0)  # half of 2^n, which may overflow; below: -1
    y = 2.0 * (scale * growth + (scale - 0.5))
    y = tl.where(n == 0, growth, y)
    return tl.where((x == x) & (x != 0), y, x)


@triton.jit
def sigmoid(x):
    """``1 / (1 + e^-x)``, by ``e^x / (1 + e^x)`` below zero."""
    e = exp(-tl.abs(x))
    return tl.where(x >= 0, constant(x, 1.0), e) / (1.0 + e)


@triton.jit
def tanh(x):
    """``e / (e + 2)`` with ``e = e^(2|x|) - 1``; 1 to the last digit from ``|x| = 22`` on."""
    e = expm1(2.0 * tl.minimum(tl.abs(x), 22.0))
    return with_sign(e / (e + 2.0), x)


@triton.jit
def sinh(x):
    """``(e + e/(e + 1)) / 2`` with ``e = e^|x| - 1``; from 20 on ``e^|x| / 2``, by two half powers."""
    a = tl.abs(x)
    e = expm1(a)
    root = exp(0.5 * a)
    y = tl.where(a < 20.0, 0.5 * (e + e / (e + 1.0)), (0.5 * root) * root)
    return with_sign(y, x)


@triton.jit
def cosh(x):
    """``e/2 + 1/(2e)`` with ``e = e^|x|``, taken in halves that do not overflow."""
    root = exp(0.5 * tl.abs(x))
    half = (0.5 * root) * root
    return half + 0.25 / half


# Logarithms -----------------------------------------------------------------------------------------------


@triton.jit
def log1p(x):
    """``log(1 + x)``, accurate near zero: the rounding error of ``1 + x`` is put back to first order."""
    u = 1.0 + x
    y = tl.log(u) + (x - (u - 1.0)) / u
    y = tl.where((u > 0) & (x < float("inf")), y, tl.log(u))
    return tl.where(u == 1.0, x, y)


@triton.jit
def softplus(x):
    """``log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)``."""
    return tl.where(x > 0, x, constant(x, 0.0)) + log1p(exp(-tl.abs(x)))


@triton.jit
def asinh(x):
    """``log(1 + a + a²/(1 + √(1 + a²)))`` with ``a = |x|``; ``log a + log 2`` where ``1/(4a²)`` is lost."""
    a = tl.abs(x)
    if x.dtype == tl.float64:
        large = a > 1e8
    else:
        large = a > 1e4
    square = a * a
    y = tl.where(
        large, tl.log(a) + 0.6931471805599453, log1p(a + square / (1.0 + sqrt(1.0 + square)))
    )
    return with_sign(y, x)


@triton.jit
def power(base, exponent):
    """``base^exponent = e^(exponent log base)``; NaN below zero.

    The relative error grows with ``|exponent log base|``: half an ulp of that product.
    """
    return exp(exponent * tl.log(base))


# Angles ---------------------------------------------------------------------------------------------------


@triton.jit
def tan(x):
    """``sin x / cos x``."""
    return tl.sin(x) / tl.cos(x)


@triton.jit
def atan(x):
    """Reduced to ``|z| <= tan(π/8)``; π/2 and π/4 are added in two parts."""
    a = tl.abs(x)
    beyond = a > 2.414213562373095
    middle = a > 0.41421356237309503
    z = tl.where(beyond, -1.0 / a, tl.where(middle, (a - 1.0) / (a + 1.0), a))
    quarters = tl.where(
        beyond, constant(a, 2.0), tl.where(middle, constant(a, 1.0), constant(a, 0.0))
    )
    w = z * z
    correction = z * (w * polynomials.atan_tail(w))
    if x.dtype == tl.float64:
        y = quarters * 0.7853981633974483 + (z + (correction + quarters * 3.061616997868383e-17))
    else:
        y = quarters * 0.785398185 + (z + (correction + quarters * -2.18556941e-8))
    return with_sign(y, x)


# The error function ---------------------------------------------------------------------------------------


@triton.jit
def erfc(x):
    """``1 - erf(x)``; from 1/2 on ``e^(-x²) P(t) / (1 + 2x)`` with ``t = (x - K) / (x + K)``."""
    a = tl.where(x < 0.5, constant(x, 0.5), x)
    if x.dtype == tl.float64:
        a = tl.where(a > 28.0, constant(x, 28.0), a)
        head = (a.to(tl.int64, bitcast=True) & -(1 << 27)).to(tl.float64, bitcast=True)
        t = (a - 4.0) / (a + 4.0)
    else:
        a = tl.where(a > 10.6, constant(x, 10.6), a)
        head = (a.to(tl.int32, bitcast=True) & -(1 << 12)).to(tl.float32, bitcast=True)
        t = (a - 2.0) / (a + 2.0)
    # What rounding x² lost, from a head of x whose square is exact. The fused product is a promise that the
    # compiler does not fuse the other one, a·a, which would make the difference exact and the loss zero.
    square = a * a
    lost = tl.fma(head, head, -square) + (a - head) * (a + head)
    tail = exp_sum(-square, -lost) * (polynomials.erfcx_core(t) / (1.0 + 2.0 * a))
    return tl.where(x < 0.5, 1.0 - tl.erf(x), tail)
