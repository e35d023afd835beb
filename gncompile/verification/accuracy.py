"""How accurate a transfer function's code is: every backend against values of many digits.

Three measures, for a result ``r`` where the mathematics says ``f(x)``:

* **ulps**: ``|r - f(x)| / ulp(f(x))``, in units of the last place of the exact value;
* **backward ulps**: ``|r - f(x)| / (ulp(f(x)) + max |f(x ± ulp(x)) - f(x)|)``, where moving the argument to a
  neighbouring float may be blamed as well. It forgives what no evaluation in one precision can avoid where
  ``f`` is ill-conditioned: near zeros that are not at 0, and in tails like ``e^(-x²)``. A kept slope is a
  function of the rounded output too, and moving that by an ulp is forgiven as well;
* **ulps of 1**: ``|r - f(x)| / ulp(max(|f(x)|, 1))``, which forgives lost digits wherever ``f`` is small.

``ulp`` is the spacing of the floats, but at least the smallest normal number (1e-38, in float64 2e-308):
many targets flush what is below to zero. A NaN, or an infinity where ``f(x)`` is finite, is infinitely far.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import mpmath
import sympy
import torch
from mpmath import mpf
from sympy import Expr, Symbol
from torch import Tensor

from ..base.tables import table
from ..emit.torch_statements import torch_statements
from ..errors import ExpressionError
from ..functions.exact_values import ExactFunction, plain_slope
from ..functions.expressions import evaluate
from ..functions.primitives import kinked, select
from ..functions.transfer import TransferFunction, transfer
from ..runtime.source_files import function_of

# What is reported -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Worst:
    """The largest error in one measure, and the argument where it occurs."""

    error: float
    at: float

    def __str__(self) -> str:
        return f"{self.error:.3g} at {self.at:.5g}"


@dataclass(frozen=True)
class Measurement:
    """The largest errors of one expression on one backend in one dtype, over ``points`` arguments.

    Arguments where the function has no real value are left out. ``what`` is ``"value"``, ``"slope"`` or
    ``"kept slope"``; the measures are those of this file's head.
    """

    what: str
    backend: str
    dtype: torch.dtype
    ulps: Worst
    backward: Worst
    of_one: Worst
    points: int


@dataclass(frozen=True)
class Accuracy:
    """What :func:`measure_accuracy` found; its text is a table."""

    function: str
    measurements: tuple[Measurement, ...]

    def __str__(self) -> str:
        rows = [["", "backend", "dtype", "ulps", "backward ulps", "ulps of 1"]]
        for m in self.measurements:
            dtype = str(m.dtype).removeprefix("torch.")
            rows.append([m.what, m.backend, dtype, *map(str, (m.ulps, m.backward, m.of_one))])
        return f"{self.function}\n{table(rows)}"


def measure_accuracy(
    function: TransferFunction | str,
    *more: object,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    density: int = 100,
) -> Accuracy:
    """The errors of value, slope and kept slope of a transfer function, by name or as declared.

    Each is computed on every backend over :func:`grid`, about ``4 density`` points, and compared with mpmath
    (:mod:`~gncompile.functions.exact_values`); the measures are defined at the head of this file. Takes
    about a second. Raises :class:`ExpressionError` for an unknown name, and for what is no transfer function.

    >>> worst = measure_accuracy("relu").measurements[0].ulps
    >>> worst.error
    0.0
    """
    if more or not isinstance(function, TransferFunction | str):
        raise ExpressionError(
            f"measure_accuracy was given {' and '.join(type(e).__name__ for e in (function, *more))}, and "
            "measures the rounding errors of one transfer function",
            instead="measure_accuracy('tanh'); for a network's accuracy on data "
            "fit(..., validation=..., metrics=['accuracy']), and trainer.evaluate for its loss",
        )
    declared = transfer(function) if isinstance(function, str) else function
    subject = _Subject(declared)
    found = [
        measurement
        for dtype in dtypes
        for backend in BACKENDS
        for measurement in subject.measured(backend, dtype, grid(declared, dtype, density))
    ]
    order = ("value", "slope", "kept slope")
    return Accuracy(str(declared), tuple(sorted(found, key=lambda m: order.index(m.what))))


# What is measured -----------------------------------------------------------------------------------------

Backend = Callable[[Expr, Mapping[Symbol, Tensor]], Tensor]
"""Computes an expression at tensors of one shape, as a backend would."""


def run_reference(expression: Expr, values: Mapping[Symbol, Tensor]) -> Tensor:
    """The reference interpreter."""
    return evaluate(expression, values).expand_as(next(iter(values.values())))


def run_torch_statements(expression: Expr, values: Mapping[Symbol, Tensor]) -> Tensor:
    """Execute what the torch backend writes."""
    names = {symbol: f"v{i}" for i, symbol in enumerate(values)}
    out = torch.empty_like(next(iter(values.values())))
    space = {"out": out, **{name: values[symbol] for symbol, name in names.items()}}

    def scratch(number: int) -> str:
        space[f"s{number}"] = torch.empty_like(out)
        return f"s{number}"

    statements = torch_statements(expression, names, "out", scratch)
    function_of(statements, space, "import torch")(**space)
    return out


BACKENDS: dict[str, Backend] = {"reference": run_reference, "torch": run_torch_statements}
"""A further backend joins by one entry."""


# Where ----------------------------------------------------------------------------------------------------


def grid(function: TransferFunction, dtype: torch.dtype, density: int) -> list[float]:
    """Arguments from the whole finite range inside the function's domain, the same on every machine.

    Of each sign, ``density`` log-spaced magnitudes from the smallest subnormal number on and ``density``
    evenly spaced in [-30, 30]; the largest finite number; 0, the smallest numbers, the machine epsilon, 1 and
    the kinks, each with its neighbouring floats.
    """
    info = torch.finfo(dtype)
    tiny, end = info.smallest_normal * info.eps, torch.tensor(math.inf, dtype=dtype)
    low, high = math.log2(tiny), math.log2(info.max)
    wide = [2.0 ** (low + (high - low) * i / density) for i in range(density)]
    near = [30 * (i + 0.5) / density for i in range(density)]
    regular = torch.tensor([*wide, *near, info.max], dtype=torch.float64).to(dtype)
    marked = [0.0, tiny, info.smallest_normal, info.eps, 1.0, *_kinks(function)]
    special = torch.tensor(marked, dtype=torch.float64).to(dtype)
    beside = [torch.nextafter(special, end), torch.nextafter(special, -end)]
    points = torch.cat([special, *beside, regular])
    start, stop = function.domain
    # 0.0 == -0.0, and both are wanted.
    signed = {(x, math.copysign(1, x)) for x in torch.cat([points, -points]).tolist()}
    return [x for x, _ in sorted(signed) if start <= x <= stop]


def _kinks(function: TransferFunction) -> list[float]:
    """Where a condition of the function changes its sign, as far as the conditions are polynomials."""
    x = function.argument
    conditions = {e.args[0] for e in kinked(function.rule.value)}
    branches = set().union(*map(_branches, conditions))
    polynomials = [sympy.Poly(b, x) for b in branches if b.is_polynomial(x) and b.has(x)]
    return sorted({float(root) for p in polynomials for root in p.nroots() if root.is_real})


def _branches(e: Expr) -> set[Expr]:
    """The expressions ``e`` can be, one for each way through the selects and absolute values in it."""
    inner = min(e.atoms(select, sympy.Abs), key=sympy.default_sort_key, default=None)
    if inner is None:
        return {e}
    u = inner.args[0]
    ways = inner.args[1:] if isinstance(inner, select) else (u, -u)
    return set().union(*(_branches(e.xreplace({inner: way})) for way in ways))


# How it is measured ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sample:
    """One result beside the exact value, with the output that the backend computed at ``x``."""

    x: float
    output: float
    error: mpf
    exact: mpf
    dtype: torch.dtype

    @property
    def ulp(self) -> mpf:
        return _ulp(self.exact, self.dtype)

    @property
    def ulps(self) -> float:
        return float(self.error / self.ulp)

    @property
    def of_one(self) -> float:
        return float(self.error / _ulp(max(abs(self.exact), mpf(1)), self.dtype))


class _Subject:
    """One function with its exact values, which all backends and dtypes share."""

    def __init__(self, function: TransferFunction) -> None:
        self.argument, self.rule = function.argument, function.rule
        slope = plain_slope(function.expression, self.argument)
        self.value = ExactFunction(function.expression, (self.argument,))
        self.slope = ExactFunction(slope, (self.argument,))
        kept = (self.argument, self.rule.output)
        self.kept_slope = ExactFunction(self.rule.kept_slopes[0], kept)

    def measured(
        self, backend: str, dtype: torch.dtype, points: Sequence[float]
    ) -> Iterator[Measurement]:
        """Value, slope, and kept slope from the output that the backend computed."""
        run = BACKENDS[backend]
        values = {self.argument: torch.tensor(points, dtype=dtype)}
        output = run(self.rule.value, values)
        slope = run(self.rule.slopes[0], values)
        kept_slope = run(self.rule.kept_slopes[0], {**values, self.rule.output: output})
        for what, results, exact, blame in (
            ("value", output, self.value, self._moved_value),
            ("slope", slope, self.slope, self._moved_slope),
            ("kept slope", kept_slope, self.slope, self._moved_kept_slope),
        ):
            triples = zip(points, output.tolist(), results.tolist(), strict=True)
            samples = [
                _Sample(x, y, _distance(got, exact(x), dtype), exact(x), dtype)
                for x, y, got in triples
                if not mpmath.isnan(exact(x))
            ]
            ulps = _worst(samples, lambda sample: sample.ulps)
            of_one = _worst(samples, lambda sample: sample.of_one)
            backward = _worst_backward(samples, blame)
            yield Measurement(what, backend, dtype, ulps, backward, of_one, len(samples))

    def _moved_value(self, sample: _Sample) -> mpf:
        return _spread(self.value, (sample.x,), 0, sample.dtype)

    def _moved_slope(self, sample: _Sample) -> mpf:
        return _spread(self.slope, (sample.x,), 0, sample.dtype)

    def _moved_kept_slope(self, sample: _Sample) -> mpf:
        moved = _spread(self.kept_slope, (sample.x, sample.output), 1, sample.dtype)
        return self._moved_slope(sample) + moved


def _worst(samples: Sequence[_Sample], measure: Callable[[_Sample], float]) -> Worst:
    worst = max(samples, key=measure)
    return Worst(measure(worst), worst.x)


def _worst_backward(samples: Sequence[_Sample], blame: Callable[[_Sample], mpf]) -> Worst:
    """The largest backward error; as it is at most the plain one, few samples need be looked at."""
    worst = Worst(0.0, samples[0].x)
    for sample in sorted(samples, key=lambda sample: -sample.ulps):
        if sample.ulps <= worst.error:
            break
        error = float(sample.error / (sample.ulp + blame(sample)))
        worst = Worst(error, sample.x) if error > worst.error else worst
    return worst


def _spread(exact: ExactFunction, at: tuple[float, ...], moved: int, dtype: torch.dtype) -> mpf:
    """How far the exact value moves as argument number ``moved`` goes to either neighbouring float."""
    spread = mpf(0)
    for end in (-math.inf, math.inf):
        start = torch.tensor(at[moved], dtype=dtype)
        beside = torch.nextafter(start, torch.tensor(end, dtype=dtype)).item()
        change = abs(exact(*at[:moved], beside, *at[moved + 1 :]) - exact(*at))
        spread = max(spread, change) if mpmath.isfinite(change) else spread
    return spread


def _ulp(value: mpf, dtype: torch.dtype) -> mpf:
    """The unit of the errors of results around ``value``."""
    info = torch.finfo(dtype)
    exponent = mpmath.mag(min(abs(value), mpf(info.max))) - 1 if value else -mpmath.inf
    return max(mpf(2) ** exponent * info.eps, mpf(info.smallest_normal))


def _distance(got: float, exact: mpf, dtype: torch.dtype) -> mpf:
    """``|got - exact|``; 0 if both are beyond the largest float, infinite for any other infinity or NaN."""
    largest = torch.finfo(dtype).max
    if math.isnan(got):
        return mpmath.inf
    if abs(exact) > largest and got * exact > 0 and abs(got) >= largest:
        return mpf(0)
    return abs(mpf(got) - exact)
