"""A loss as instructions: value, gradient, output Hessian in every form a curvature method needs.

:func:`loss_rules` gives the rules of a declared loss for one network output z ``[N, K]``. All are per
sample and carry the loss's scale c; the mean over samples is taken by whoever uses them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import sympy

from ..errors import InternalError
from ..losses.vocabulary import (
    NOISE,
    OUTPUT,
    TARGET,
    CoupledLoss,
    Loss,
    Scale,
    SeparableLoss,
    SoftmaxCrossEntropy,
)
from ..program import operations as ir
from ..program.builder import ProgramBuilder, Value
from ..program.specs import Structure

SCALE = sympy.Symbol("c", positive=True)
"""The scale c of the loss where it is known only with the batch (a sum over samples)."""


class LossRules(Protocol):
    """What every loss provides; shapes in the docstrings of the implementations."""

    def value(self) -> Value: ...
    def gradient(self) -> Value: ...
    def mean_hessian(self) -> Value: ...
    def sample_hessians(self, *, exact: bool = False) -> Value: ...
    def hessian_product(self, r: Value) -> Value: ...
    def root_columns(self) -> Value: ...
    def sampled_gradient(self) -> Value: ...
    def projected_gradient(self) -> Value: ...


def loss_rules(builder: ProgramBuilder, loss: Loss, z: Value) -> LossRules:
    """The rules of ``loss`` at output ``z``: ``[N, K]``."""
    if isinstance(loss, SeparableLoss):
        return SeparableRules(builder, loss, z)
    if isinstance(loss, CoupledLoss):
        return CoupledRules(builder, loss, z)
    return CrossEntropyRules(builder, loss, z)


def _target(builder: ProgramBuilder, z: Value, size: int | None = None) -> Value:
    """The target rows of the samples that z holds; as many targets as outputs unless ``size`` says."""
    rows, outputs = z.spec.shape
    y = builder.leaf("target", "y", ("N", size or outputs))
    return y if rows == "N" else builder.emit(ir.Share(rows), y, name=f"{y.name}_{rows}")


def _scale(builder: ProgramBuilder, scale: Scale, outputs: int) -> tuple[sympy.Expr, dict]:
    """The scale c as an expression, with the values of its symbols."""
    if scale.over == "sum":
        batch = builder.leaf("scalar", "batch_size", ())
        return scale.factor * SCALE, {SCALE: batch}
    return _exact(scale.value(1, outputs)), {}


@cache
def _exact(number: float) -> sympy.Expr:
    return sympy.nsimplify(number, rational=True)


def _in_rows(builder: ProgramBuilder, value: Value, like: Value) -> Value:
    """``value`` with a row for every sample of ``like``, even where it is one number for all of them.

    What is summed over a row's elements must have them: a constant target ``1/K`` sums to 1 in a row of K.
    """
    if len(value.spec.shape) == 2:
        return value
    return builder.emit(ir.BroadcastRows(), value, like, name=value.name)


@dataclass
class SeparableRules:
    """``E_n = c Σ_j e(z_j, y_j)``: everything is elementwise."""

    builder: ProgramBuilder
    loss: SeparableLoss
    z: Value

    def __post_init__(self) -> None:
        self.outputs = int(self.z.spec.shape[-1])
        self.c, self.symbols = _scale(self.builder, self.loss.scale, self.outputs)

    def _at(self, expression: sympy.Expr, name: str, noise: Value | None = None) -> Value:
        values = {OUTPUT: self.z, **self.symbols}
        if TARGET in expression.free_symbols:
            values[TARGET] = _target(self.builder, self.z)
        if noise is not None:
            values[NOISE] = noise
        return self.builder.pointwise(expression, values, name=name)

    def _per_output(self, expression: sympy.Expr, name: str) -> Value:
        """``expression`` as ``[N, K]`` even where it is constant in z."""
        return _in_rows(self.builder, self._at(expression, name), self.z)

    def value(self) -> Value:
        """``(1/N) Σ_n E_n``, a scalar."""
        each = self._at(self.c * self.loss.expression, "loss_elements")
        return self.builder.emit(ir.Total(mean=True), each, name="loss")

    def gradient(self) -> Value:
        """``∂E_n/∂z``: ``[N, K]``."""
        return self._at(self.c * self.loss.slope, "g_output")

    def mean_hessian(self) -> Value:
        """``E[𝓗_L]``: diagonal, or a scaled identity where the curvature is constant."""
        curvature = self._at(self.c * self.loss.curvature, "hessian_elements")
        if curvature.spec.shape == ():
            return self.builder.as_matrix(curvature, Structure.SCALED_IDENTITY, self.outputs)
        mean = self.builder.emit(ir.Mean(), curvature, name="hessian_mean")
        return self.builder.as_matrix(mean, Structure.DIAGONAL, self.outputs)

    def sample_hessians(self, *, exact: bool = False) -> Value:
        """``𝓗_L`` of every sample, ``[N, K, K]``."""
        curvature = self._per_output(self.c * self.loss.curvature, "hessian_elements")
        return self.builder.emit(ir.SampleDiagonal(), curvature)

    def hessian_product(self, r: Value) -> Value:
        """``𝓗_L r``: ``[N, K]``."""
        u, v = sympy.symbols("u v", real=True)
        curvature = self._at(self.c * self.loss.curvature, "hessian_elements")
        return self.builder.pointwise(u * v, {u: curvature, v: r}, name="hessian_times_r")

    def root_columns(self) -> Value:
        """A chunk of columns of ``√c diag √e''``: ``[S, N, K]``."""
        root = self._per_output(sympy.sqrt(self.c) * self.loss.root, "root")
        return self.builder.emit(ir.Columns(), root, name="root_columns")

    def sampled_gradient(self) -> Value:
        """``√c g̃`` with targets drawn from the loss's model: ``[N, K]``."""
        noise = self.builder.emit(ir.Random(self.loss.noise, self.z.spec.shape), name="noise")
        return self._at(sympy.sqrt(self.c) * self.loss.sampled_slope, "g_sampled", noise)

    def projected_gradient(self) -> Value:
        """``√c √e'' v`` with random signs v: ``[N, K]``."""
        noise = self.builder.emit(ir.Random("sign", self.z.spec.shape), name="signs")
        return self._at(sympy.sqrt(self.c) * self.loss.projected_slope, "g_projected", noise)


@dataclass
class CrossEntropyRules:
    """Softmax cross-entropy with index or soft targets ``ŷ`` of mass m (formulas at the declaration)."""

    builder: ProgramBuilder
    loss: SoftmaxCrossEntropy
    z: Value

    def __post_init__(self) -> None:
        self.outputs = int(self.z.spec.shape[-1])
        self.c, self.symbols = _scale(self.builder, self.loss.scale, self.outputs)
        builder, k = self.builder, self.outputs
        y = sympy.Symbol("y", real=True)
        # Targets reach the program as rows [N, K]; the runtime turns class indices into one-hot rows.
        rows = _target(builder, self.z)
        smoothing = sympy.nsimplify(self.loss.label_smoothing, rational=True)
        smooth = builder.pointwise((1 - smoothing) * y + smoothing / k, {y: rows}, name="y_smooth")
        self.y = _in_rows(builder, smooth, rows)
        self.p = builder.emit(ir.Softmax(), self.z, name="p")
        self.mass = builder.emit(ir.RowSum(), self.y, name="target_mass")

    def _at(self, expression: sympy.Expr, name: str, **values: Value) -> Value:
        table = {s: values[s.name] for s in expression.free_symbols if s.name in values}
        return self.builder.pointwise(expression, {**table, **self.symbols}, name=name)

    def value(self) -> Value:
        """``(1/N) Σ_n c (m lse(z) − ŷᵀz)``, as ``c Σ_k ŷ_k (lse(z) − z_k)``."""
        y, lse, z = sympy.symbols("y lse z", real=True)
        log_sum = self.builder.emit(ir.LogSumExp(), self.z, name="lse")
        each = self._at(self.c * y * (lse - z), "loss_elements", y=self.y, lse=log_sum, z=self.z)
        return self.builder.emit(ir.Total(mean=True), each, name="loss")

    def gradient(self) -> Value:
        """``c (m p − ŷ)``: ``[N, K]``."""
        m, p, y = sympy.symbols("m p y", real=True)
        return self._at(self.c * (m * p - y), "g_output", m=self.mass, p=self.p, y=self.y)

    def _weighted_p(self) -> Value:
        """``√(c m) p``."""
        m, p = sympy.symbols("m p", real=True)
        return self._at(sympy.sqrt(self.c * m) * p, "p_weighted", m=self.mass, p=self.p)

    def mean_hessian(self) -> Value:
        """``diag E[c m p] − E[c m p pᵀ]``: symmetric."""
        m, p = sympy.symbols("m p", real=True)
        diagonal = self._at(self.c * m * p, "p_mass", m=self.mass, p=self.p)
        mean = self.builder.emit(ir.Mean(), diagonal, name="p_mean")
        moment = self.builder.emit(ir.Moment(), self._weighted_p(), name="p_moment")
        negative = self.builder.scaled(moment, -1.0)
        return self.builder.emit(ir.AddDiagonal(), negative, mean, name="hessian_mean")

    def sample_hessians(self, *, exact: bool = False) -> Value:
        """``c m (diag p − p pᵀ)`` of every sample: ``[N, K, K]``."""
        m, p, a, b = sympy.symbols("m p a b", real=True)
        q = self._weighted_p()
        outer = self.builder.emit(ir.SampleOuter(), q, q)
        diagonal = self._at(self.c * m * p, "p_mass", m=self.mass, p=self.p)
        full = self.builder.emit(ir.SampleDiagonal(), diagonal)
        return self.builder.pointwise(a - b, {a: full, b: outer})

    def hessian_product(self, r: Value) -> Value:
        """``c m (p ⊙ r − p (pᵀ r))``: ``[N, K]``."""
        builder = self.builder
        m, p, s, t = sympy.symbols("m p s t", real=True)
        pr = builder.pointwise(p * t, {p: self.p, t: r}, name="p_times_r")
        total = builder.emit(ir.RowSum(), pr, name="p_dot_r")
        return self._at(
            self.c * m * (t - p * s), "hessian_times_r", m=self.mass, p=self.p, s=total, t=pr
        )

    def root_columns(self) -> Value:
        """A chunk of columns ``√(c m p_k) (e_k − p)``: ``[S, N, K]``."""
        m, p = sympy.symbols("m p", real=True)
        root = self._at(sympy.sqrt(self.c * m * p), "root", m=self.mass, p=self.p)
        return self.builder.emit(ir.Columns(), root, self.p, name="root_columns")

    def sampled_gradient(self) -> Value:
        """``√(c m) (p − onehot(ỹ))``, ỹ drawn from p: ``[N, K]``."""
        m, p, y = sympy.symbols("m p y", real=True)
        uniform = self.builder.emit(ir.Random("uniform", (self.z.spec.shape[0], 1)), name="noise")
        sampled = self.builder.emit(ir.SampleCategorical(), self.p, uniform, name="y_sampled")
        return self._at(
            sympy.sqrt(self.c * m) * (p - y), "g_sampled", m=self.mass, p=self.p, y=sampled
        )

    def projected_gradient(self) -> Value:
        """``√(c m) (√p ⊙ v − p (√pᵀ v))`` with random signs v: ``[N, K]``."""
        m, p, v, s = sympy.symbols("m p v s", real=True)
        signs = self.builder.emit(ir.Random("sign", self.z.spec.shape), name="signs")
        rooted = self._at(sympy.sqrt(p) * v, "signed_root", p=self.p, v=signs)
        total = self.builder.emit(ir.RowSum(), rooted, name="signed_root_sum")
        return self._at(sympy.sqrt(self.c * m) * (v - p * s), "g_projected",
                        m=self.mass, p=self.p, v=rooted, s=total)  # fmt: skip


@dataclass
class CoupledRules:
    """``E_n = c e(z, y)`` for a few outputs; each entry of gradient and Hessian is a value ``[N, 1]``.

    The curvature is ``𝓗₊ = C Cᵀ``, which is ``𝓗`` unless the loss asks for negative curvature to be clipped.
    """

    builder: ProgramBuilder
    loss: CoupledLoss
    z: Value

    def __post_init__(self) -> None:
        builder, loss = self.builder, self.loss
        self.c, self.symbols = _scale(builder, loss.scale, loss.outputs)
        y = _target(builder, self.z, loss.targets_count)
        self.columns = {
            symbol: builder.emit(ir.Gather((k,)), rows, name=symbol.name)
            for symbols, rows in ((loss.z, self.z), (loss.y, y))
            for k, symbol in enumerate(symbols)
        }

    def _at(self, expression: sympy.Expr, name: str) -> Value:
        value = self.builder.pointwise(expression, {**self.columns, **self.symbols}, name=name)
        return _in_rows(self.builder, value, self.columns[self.loss.z[0]])

    def value(self) -> Value:
        """``(1/N) Σ_n E_n``, a scalar."""
        each = self._at(self.c * self.loss.value, "loss_elements")
        return self.builder.emit(ir.Total(mean=True), each, name="loss")

    def gradient(self) -> Value:
        """``∂E_n/∂z``: ``[N, K]``."""
        slopes = [
            self._at(self.c * slope, f"g_{z}")
            for z, slope in zip(self.loss.z, self.loss.gradient, strict=True)
        ]
        return self.builder.emit(ir.Gather(tuple(range(len(slopes)))), *slopes, name="g_output")

    def _hessians(self) -> Value:
        """``𝓗_L`` of every sample: ``[N, K, K]``."""
        k, z = self.loss.outputs, self.loss.z
        entries = {
            (i, j): self._at(self.c * entry, f"hessian_{z[i]}_{z[j]}")
            for (i, j), entry in self.loss.hessian.items()
        }
        place = {key: number for number, key in enumerate(entries)}
        index = tuple(place[min(i, j), max(i, j)] for i in range(k) for j in range(k))
        rows = self.builder.emit(ir.Gather(index), *entries.values(), name="hessian_rows")
        return self.builder.emit(ir.SampleMatrix(k), rows, name="hessians")

    def _roots(self) -> Value:
        """``C`` with ``C Cᵀ = 𝓗₊`` of every sample: ``[N, K, K]``."""
        return self.builder.emit(ir.SampleRoot(), self._hessians(), name="roots")

    def sample_hessians(self, *, exact: bool = False) -> Value:
        """``𝓗₊`` of every sample, or ``𝓗`` if ``exact``: ``[N, K, K]``."""
        if exact or self.loss.negative_curvature == "refuse":
            return self._hessians()
        roots = self._roots()
        return self.builder.emit(ir.MatMul(transpose_b=True), roots, roots, name="hessians_clipped")

    def mean_hessian(self) -> Value:
        """``E[𝓗₊]``: symmetric."""
        return self.builder.emit(ir.Mean(matrix=True), self.sample_hessians(), name="hessian_mean")

    def hessian_product(self, r: Value) -> Value:
        """``𝓗₊ r``: ``[N, K]``."""
        hessians = self.sample_hessians()
        return self.builder.emit(ir.SampleMultiply(), hessians, r, name="hessian_times_r")

    def root_columns(self) -> Value:
        """A chunk of columns of ``C``: ``[S, N, K]``."""
        return self.builder.emit(ir.Columns(), self._roots(), name="root_columns")

    def sampled_gradient(self) -> Value:
        """Refused by the pipeline: an expression is no model to draw targets from."""
        raise InternalError(f"the loss {self.loss.name!r} has no sampler")

    def projected_gradient(self) -> Value:
        """``C v`` with random signs v: ``[N, K]``."""
        signs = self.builder.emit(ir.Random("sign", self.z.spec.shape), name="signs")
        return self.builder.emit(ir.SampleMultiply(), self._roots(), signs, name="g_projected")
