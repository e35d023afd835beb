"""A loss of a few outputs that act together, as one expression: the likelihood of a mixture, a norm.

``E_n = c e(z_1, …, z_K, y_1, …, y_T)``, K at most :data:`MAX_OUTPUTS`. Gradient and output Hessian are
derived entry by entry; the square root of the Hessian is taken numerically, sample by sample, from its
eigenvalues.

Whether the loss is convex, and what was derived from it true, is found out by evaluation at many points: with
100 digits, and by central differences, which share nothing with the derivation.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import mpmath
import sympy
from sympy import Expr, Symbol

from ..errors import LossError
from ..functions.composition import is_convex
from ..functions.convexity import Convexity
from ..functions.derive import differentiate
from ..functions.precise import Number, precise_function, real_value
from ..functions.primitives import kinked
from ..functions.stable_forms import stable
from .loss_scale import PER_SAMPLE, Scale
from .targets import check_elementwise_target, element_weights, rows_of, taken_apart, within

if TYPE_CHECKING:
    import torch

MAX_OUTPUTS = 16
NegativeCurvature = Literal["refuse", "clip"]


def output_symbols(count: int) -> tuple[Symbol, ...]:
    """``z1 … zK``."""
    return tuple(Symbol(f"z{i}", real=True) for i in range(1, count + 1))


def target_symbols(count: int) -> tuple[Symbol, ...]:
    """``y1 … yT``."""
    return tuple(Symbol(f"y{i}", real=True) for i in range(1, count + 1))


@dataclass(frozen=True)
class CoupledLoss:
    """``E_n = c e(z, y)``, ``e`` an ``expression`` in :func:`output_symbols` and :func:`target_symbols`.

    The network has ``outputs`` = K outputs, a batch of targets is ``[N, T]`` with T = ``targets_count``,
    and all targets lie in ``targets``; with ``weighted`` it is ``(y, w)``, a weight a sample. Where ``e`` is
    not convex, ``negative_curvature="clip"`` lets the curvature methods use ``𝓗₊``, the output Hessian with
    its negative eigenvalues set to zero, sample by sample.
    """

    name: str
    expression: Expr
    outputs: int
    targets_count: int
    scale: Scale = PER_SAMPLE
    targets: tuple[float, float] = (-math.inf, math.inf)
    negative_curvature: NegativeCurvature = "refuse"
    weighted: bool = False

    @property
    def structured(self) -> bool:
        """Whether a batch's target is a tuple, ``(y, w)``."""
        return self.weighted

    @property
    def sampler(self) -> None:
        """None: an expression is no model to draw targets from, so KFAC is to use ±1 projections."""

    @property
    def z(self) -> tuple[Symbol, ...]:
        """The outputs' symbols."""
        return output_symbols(self.outputs)

    @property
    def y(self) -> tuple[Symbol, ...]:
        """The targets' symbols."""
        return target_symbols(self.targets_count)

    @cached_property
    def value(self) -> Expr:
        """``e`` in a form that does not overflow."""
        return stable(self.expression)

    @cached_property
    def gradient(self) -> tuple[Expr, ...]:
        """``∂e/∂z_i``."""
        return tuple(stable(differentiate(self.value, z)) for z in self.z)

    @cached_property
    def hessian(self) -> dict[tuple[int, int], Expr]:
        """``∂²e/∂z_i∂z_j`` for ``i <= j``; 0 at a kink."""
        return {
            (i, j): stable(differentiate(slope, self.z[j]))
            for i, slope in enumerate(self.gradient)
            for j in range(i, self.outputs)
        }

    @cached_property
    def convexity(self) -> Convexity:
        """The verdict on ``𝓗 ≥ 0``: of a constant 𝓗, by rules of composition, or seen at many points."""
        entries = self.hessian.values()
        if all(entry.is_number for entry in entries) and not kinked(self.value):
            matrix = sympy.Matrix(self.outputs, self.outputs, lambda i, j: self.entry(i, j))
            if matrix.is_positive_semidefinite:
                return Convexity(
                    "convex", "the output Hessian is constant and has no negative eigenvalue"
                )
        signed = self.value
        if self.targets[0] >= 0:
            signed = signed.subs({y: Symbol(y.name, nonnegative=True) for y in self.y})
        if is_convex(signed, self.z):
            return Convexity("convex", "it is composed of convex functions by rules that keep that")
        return seen_convexity(self)

    def entry(self, i: int, j: int) -> Expr:
        """``∂²e/∂z_i∂z_j`` in either order."""
        return self.hessian[min(i, j), max(i, j)]

    def check_output(self, shape: tuple[int, ...]) -> None:
        """Raise :class:`LossError` unless the per-sample output is a row of K numbers."""
        if shape != (self.outputs,):
            batch = ", ".join(["N", *map(str, shape)])
            raise LossError(
                f"the loss {self.name!r} couples {self.outputs} outputs, the network returns [{batch}]",
                where="the model's output",
                instead=f"return [N, {self.outputs}]",
            )

    def bound(self, shape: tuple[int, ...]) -> CoupledLoss:
        """The loss itself, for outputs of this per-sample ``shape``."""
        self.check_output(shape)
        return self

    def layout(self, outputs: int) -> dict[str, int]:
        """The columns of a target's row: the T targets, the weight, the d of the scale."""
        columns = {"y": self.targets_count, **({"weight": 1} if self.weighted else {})}
        return columns | ({"divisor": 1} if self.scale.of_batch else {})

    def check_target(self, z_shape: tuple[int, ...], z_dtype: torch.dtype, target: Any) -> None:
        """Raise :class:`BatchError` unless ``target`` is ``[N, T]``, of the output's dtype and in bounds."""
        y, weights = self._apart(target, z_dtype)
        if weights is not None and len(y) == len(weights):
            y = self._shown(y, weights)
        shape = (z_shape[0], self.targets_count)
        check_elementwise_target(self.name, shape, z_dtype, y, self.targets)

    def _apart(self, target: Any, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Target and weights ``[N]``."""
        if not self.weighted:
            return (*taken_apart(self.name, target, ("y",)), None)  # type: ignore[return-value]
        y, weights = taken_apart(self.name, target, ("y", "w"))
        return y, element_weights(self.name, tuple(y.shape[:1]), dtype, weights)

    def _shown(self, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Targets, with a number that the loss accepts in place of those whose weight is zero."""
        harmless = min(max(0.0, self.targets[0]), self.targets[1])
        return y.masked_fill((weights == 0).reshape(-1, *[1] * (y.dim() - 1)), harmless)

    def rows(self, target: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The target as rows, see :meth:`layout`."""
        y, weights = self._apart(target, dtype)
        if weights is None:
            return rows_of([within(y, self.targets)], dtype)
        columns = [within(self._shown(y, weights), self.targets), weights]
        return rows_of([*columns, *self.scale.of_batch * [weights]], dtype)

    def describe(self) -> str:
        """One line: value, Hessian, scale."""
        clipped = ", negative eigenvalues set to zero" if self.negative_curvature == "clip" else ""
        hessian = f"𝓗 = ∂²e/∂z² [{self.outputs}, {self.outputs}]{clipped}"
        return f"{self.name}: e = {self.expression}, {hessian}, {self.scale}" + (
            ", times the weights of the batch" if self.weighted else ""
        )


def coupled_loss(
    name: str,
    expression: Expr,
    outputs: int | None,
    targets: tuple[float, float],
    negative_curvature: NegativeCurvature,
) -> CoupledLoss:
    """The loss of an expression, its numbers of outputs and targets read off the highest indices.

    ``outputs`` may be more than the highest index. Raises :class:`LossError` for other symbols, or too many.
    """
    known = {s.name: s for s in (*output_symbols(MAX_OUTPUTS), *target_symbols(MAX_OUTPUTS))}
    used = [symbol.name for symbol in expression.free_symbols]
    others = sorted(set(used) - set(known))
    highest = {
        letter: max((int(n[1:]) for n in used if n in known and n[0] == letter), default=0)
        for letter in "zy"
    }
    count = outputs or highest["z"]
    if others or not highest["z"] <= count <= MAX_OUTPUTS or count == 0:
        found = f"uses {', '.join(others)}" if others else f"has {highest['z'] or 'no'} outputs"
        raise LossError(
            f"the loss {name!r} {found}",
            where=f"e = {expression}",
            instead="use z and y for a loss summed over outputs, or z1 … zK and y1 … yT with K at most "
            f"{MAX_OUTPUTS}, not both",
        )
    return CoupledLoss(
        name,
        expression,
        count,
        highest["y"] or 1,
        targets=targets,
        negative_curvature=negative_curvature,
    )


# Checks ---------------------------------------------------------------------------------------------------

SCALES = (1.0, 3.0, 10.0, 30.0)
PER_SCALE = 60
CHECKED = 3
DIGITS, STEP = 100, 1e-20
RELATIVE, ABSOLUTE = 1e-15, 1e-30
"""Far above the errors of the differences, far below any wrong rule."""

RESTRICT = "choose another branch there with select, or declare the targets: targets=(low, high)"
CHORD, CHORD_ERROR = 1e-4, 1e-11
"""Half a chord's length, and what rounding to float64 can lift a value above it."""
TOLERANCE = 1e-12
"""Relative to the largest eigenvalue: what float64 can tell from zero."""


def probes(loss: CoupledLoss) -> list[list[float]]:
    """Deterministic points ``(z, y)``: outputs scattered at four scales, targets over their range."""
    generator = random.Random(0)
    low, high = max(loss.targets[0], -3.0), min(loss.targets[1], 3.0)
    low, high = (low, high) if low <= high else loss.targets
    ends = [end for end in loss.targets if math.isfinite(end)]
    points = [[0.0] * loss.outputs + [(low + high) / 2] * loss.targets_count]
    for scale, _ in itertools.product(SCALES, range(PER_SCALE)):
        z = [generator.gauss(0, scale) for _ in range(loss.outputs)]
        inside = [generator.uniform(low, high) for _ in range(loss.targets_count)]
        points.append([*z, *(generator.choice([y, *ends]) for y in inside)])
    return points


def seen_convexity(loss: CoupledLoss) -> Convexity:
    """Eigenvalues of the derived Hessian at the probes; a negative one is confirmed on the expression."""
    import torch

    from ..functions.expressions import evaluate

    points = torch.tensor(probes(loss), dtype=torch.float64)
    columns = dict(zip((*loss.z, *loss.y), points.T, strict=True))
    hessian = points.new_empty(len(points), loss.outputs, loss.outputs)
    for (i, j), entry in loss.hessian.items():
        hessian[:, i, j] = hessian[:, j, i] = evaluate(entry, columns)
    usable = hessian.isfinite().all(dim=2).all(dim=1).nonzero().flatten()
    values, vectors = torch.linalg.eigh(hessian[usable])
    negative = values[:, 0] < -TOLERANCE * values.abs().amax(dim=1).clamp(min=1e-6)
    for row in negative.nonzero().flatten().tolist():
        point = points[usable[row]].tolist()
        along = vectors[row, :, 0].tolist()
        second = directional(loss, point, along)
        if second is not None and second[2] < -ABSOLUTE * (1 + abs(second[0])):
            at = ", ".join(f"{s} = {v:.4g}" for s, v in zip((*loss.z, *loss.y), point, strict=True))
            shown = mpmath.nstr(second[2], 4)
            return Convexity("not convex", f"𝓗 has the eigenvalue {shown} at {at}")
    if kink := bad_kink(loss):
        return Convexity("not convex", f"e jumps, or its slope falls, at {kink}")
    found = f"𝓗 was seen to have no negative eigenvalue at {len(usable)} points"
    return Convexity("unproved", found)


def bad_kink(loss: CoupledLoss) -> str | None:
    """Where ``e`` lies above a short chord across one of its kinks, met from the probes along a direction."""
    import torch

    from ..functions.expressions import evaluate

    points = torch.tensor(probes(loss), dtype=torch.float64)
    along = torch.zeros_like(points)
    along[:, : loss.outputs] = points[:, : loss.outputs].roll(1, 0).sign() + 0.25

    def at(where: torch.Tensor, e: Expr) -> torch.Tensor:
        columns = dict(zip((*loss.z, *loss.y), where.T, strict=True))
        return evaluate(e, columns).expand(len(where))

    for kink in sorted({part.args[0] for part in kinked(loss.value)}, key=sympy.default_sort_key):
        here, there = at(points, kink), at(points + along, kink)
        middle = points + along * (here / (here - there))[:, None]  # the root, of an affine one
        below, top, above = (at(middle + s * CHORD * along, loss.value) for s in (-1, 0, 1))
        bent = 2 * top - below - above > CHORD_ERROR * (1 + top.abs())
        for row in bent.nonzero().flatten().tolist():
            z = middle[row].tolist()
            return ", ".join(f"{s} = {v:.4g}" for s, v in zip((*loss.z, *loss.y), z, strict=True))
    return None


def directional(
    loss: CoupledLoss, point: list[float], along: Sequence[Number]
) -> tuple[Number, Number, Number] | None:
    """Value and first two derivatives of the declared expression along a direction in z, by differences."""
    with mpmath.workdps(DIGITS):
        function = precise_function(loss.expression, (*loss.z, *loss.y))
        moved = [*along, *[0.0] * loss.targets_count]
        h = mpmath.mpf(STEP)
        found = [
            real_value(function, *(p + s * h * d for p, d in zip(point, moved, strict=True)))
            for s in (-1, 0, 1)
        ]
        values = [v for v in found if v is not None and mpmath.isfinite(v)]
        if len(values) < 3:
            return None
        below, here, above = values
        return here, (above - below) / (2 * h), (above - 2 * here + below) / h**2


def check_derivatives(loss: CoupledLoss) -> None:
    """Raise :class:`LossError` unless gradient and Hessian agree with differences of the declared expression.

    Compared are ``gᵀd`` and ``dᵀ𝓗d`` along directions d in general position at some of the probes that are
    no kinks, and float32 evaluation, which must be finite where the mathematics is.
    """
    with mpmath.workdps(DIGITS):
        symbols = (*loss.z, *loss.y)
        kinks = precise_function(sympy.Tuple(*(k.args[0] for k in kinked(loss.value))), symbols)
        derived = precise_function(sympy.Tuple(*loss.gradient, *loss.hessian.values()), symbols)
        generator = random.Random(1)
        for point in _few(probes(loss)):
            drawn = [generator.uniform(0.5, 1.5) * generator.choice((-1, 1)) for _ in loss.z]
            d = [mpmath.mpf(each) for each in drawn]  # a constant entry is a Python number
            expected = directional(loss, point, d)
            if expected is None:
                raise _wrong(loss, point, "its value is not a finite real number", RESTRICT)
            if 0 in kinks(*map(mpmath.mpf, point)):
                continue
            values = derived(*map(mpmath.mpf, point))
            slopes, entries = values[: loss.outputs], values[loss.outputs :]
            first = mpmath.fsum(s * di for s, di in zip(slopes, d, strict=True))
            second = mpmath.fsum(
                h * d[i] * d[j] * (1 if i == j else 2)
                for (i, j), h in zip(loss.hessian, entries, strict=True)
            )
            pairs = {"gradient": (expected[1], first), "output Hessian": (expected[2], second)}
            for what, (wanted, got) in pairs.items():
                if not abs(wanted - got) <= RELATIVE * abs(wanted) + ABSOLUTE * (
                    1 + abs(expected[0])
                ):
                    shown = f"{mpmath.nstr(wanted, 10)} expected, {mpmath.nstr(got, 10)} derived"
                    found = f"its {what} along a direction is wrong: {shown}"
                    raise _wrong(loss, point, found, "please report this expression")
    _check_float32(loss)


def _few(points: list[list[float]]) -> Iterator[list[float]]:
    yield points[0]
    for start in range(1, len(points), PER_SCALE):
        yield from points[start : start + CHECKED]


def _check_float32(loss: CoupledLoss) -> None:
    import torch

    from ..functions.expressions import evaluate

    points = probes(loss)
    columns = dict(zip((*loss.z, *loss.y), torch.tensor(points).T, strict=True))
    for formula in (loss.value, *loss.gradient, *loss.hessian.values()):
        finite = evaluate(formula, columns).expand(len(points)).isfinite().tolist()
        for point in itertools.compress(points, (not f for f in finite)):
            with mpmath.workdps(DIGITS):
                value = real_value(precise_function(formula, (*loss.z, *loss.y)), *point)
            if value is not None and abs(value) < 1e30:
                raise _wrong(
                    loss,
                    point,
                    f"{formula} is not finite in float32, where it is {mpmath.nstr(value, 6)}",
                    "write it with softplus, sigmoid, tanh or log1p, which do not overflow",
                )


def _wrong(loss: CoupledLoss, point: list[float], found: str, instead: str) -> LossError:
    at = ", ".join(f"{s} = {v:.6g}" for s, v in zip((*loss.z, *loss.y), point, strict=True))
    return LossError(f"the loss {loss.name!r}: {found}", where=f"at {at}", instead=instead)
