"""Derives the polynomials of ``polynomials.py``: run ``python triton_kernels/fit_polynomials.py``.

Each is the Chebyshev interpolant (within a factor of about two of minimax) of a function computed by
mpmath at 60 digits, then rounded coefficient by coefficient to the precision it is used in. The degree is
the lowest whose error is well below half an ulp of the quantity it enters.

==============  ==========================================  ==================================
polynomial      function                                    interval
==============  ==========================================  ==================================
``exp_tail``    ``(e^r - 1 - r) / r²``                      ``|r| <= ln(2)/2``, and 1 % more
``atan_tail``   ``(atan(z) - z) / z³`` in ``w = z²``        ``0 <= z <= tan(π/8)``, and 1 % more
``erfcx_core``  ``(1 + 2x) e^(x²) erfc(x)`` in              ``1/2 <= x <= 10.6`` (float32), 28
                ``t = (x - K) / (x + K)``                   (float64): erfc is zero beyond
==============  ==========================================  ==================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mpmath
import numpy as np

DIGITS = 60
ERFCX_CENTRE = {"float32": 2, "float64": 4}
"""K of the substitution in ``erfcx_core``: the point that is mapped to zero."""

HEADER = '''"""Polynomials of the elementary functions, by Horner's rule, from ``fit_polynomials.py``."""

from gncompile.triton_kernels.language import tl, triton
'''


@dataclass(frozen=True)
class Fit:
    """One polynomial in one precision."""

    function: Callable[[Any], Any]
    interval: tuple[Any, Any]
    degree: int

    def coefficients(self) -> list[Any]:
        """Highest power first."""
        fitted = mpmath.chebyfit(self.function, list(self.interval), self.degree + 1)
        return list(fitted)


def exp_tail(r: Any) -> Any:
    """``(e^r - 1 - r) / r²``, by its series where the quotient would cancel."""
    if abs(r) < mpmath.mpf(10) ** -15:
        return mpmath.mpf(1) / 2 + r / 6 + r**2 / 24
    return (mpmath.expm1(r) - r) / r**2


def atan_tail(w: Any) -> Any:
    """``(atan(z) - z) / z³`` at ``z = √w``, by its series where the quotient would cancel."""
    if abs(w) < mpmath.mpf(10) ** -15:
        return -mpmath.mpf(1) / 3 + w / 5 - w**2 / 7
    z = mpmath.sqrt(w)
    return (mpmath.atan(z) - z) / z**3


def erfcx_core(centre: int) -> Callable[[Any], Any]:
    """``(1 + 2x) e^(x²) erfc(x)`` at ``x = K (1 + t) / (1 - t)``."""

    def core(t: Any) -> Any:
        x = centre * (1 + t) / (1 - t)
        return (1 + 2 * x) * mpmath.exp(x * x) * mpmath.erfc(x)

    return core


def fits() -> dict[str, tuple[Fit, Fit]]:
    """The float32 and the float64 fit of each polynomial, at mpmath's current precision."""
    half = mpmath.log(2) / 2 * mpmath.mpf("1.01")
    square = (mpmath.tan(mpmath.pi / 8) * mpmath.mpf("1.01")) ** 2
    narrow, wide = (
        Fit(erfcx_core(k), tuple((x - k) / (x + k) for x in (mpmath.mpf("0.5"), top)), degree)
        for k, top, degree in (
            (ERFCX_CENTRE["float32"], mpmath.mpf("10.6"), 10),
            (ERFCX_CENTRE["float64"], mpmath.mpf(28), 22),
        )
    )
    return {
        "exp_tail": (Fit(exp_tail, (-half, half), 5), Fit(exp_tail, (-half, half), 11)),
        "atan_tail": (
            Fit(atan_tail, (mpmath.mpf(0), square), 5),
            Fit(atan_tail, (mpmath.mpf(0), square), 12),
        ),
        "erfcx_core": (narrow, wide),
    }


def horner(coefficients: list[Any], kind: type) -> list[str]:
    """Lines that evaluate a polynomial in ``x`` into ``p``; literals are the shortest that round back."""
    first, second, *rest = [str(kind(str(c))) for c in coefficients]
    return [f"p = x * {first} + {second}", *[f"p = p * x + {c}" for c in rest]]


def source() -> str:
    """The text of ``polynomials.py``."""
    with mpmath.workdps(DIGITS):
        parts = [HEADER]
        for name, (narrow, wide) in fits().items():
            lines = ["", "@triton.jit", f"def {name}(x):", "    if x.dtype == tl.float64:"]
            lines += [f"        {line}" for line in horner(wide.coefficients(), np.float64)]
            lines += ["    else:"]
            lines += [f"        {line}" for line in horner(narrow.coefficients(), np.float32)]
            parts.append("\n".join([*lines, "    return p", ""]))
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("polynomials.py").write_text(source(), encoding="utf-8")
