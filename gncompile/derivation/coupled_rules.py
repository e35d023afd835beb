"""The rules of a loss that couples a few outputs."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..errors import InternalError
from ..losses.vocabulary import CoupledLoss
from ..program import operations as ir
from ..program.builder import Value
from .loss_target import LossTarget, in_rows


@dataclass
class CoupledRules:
    """``E_n = c e(z, y)`` for a few outputs; each entry of gradient and Hessian is a value ``[N, 1]``.

    The curvature is ``𝓗₊ = C Cᵀ``, which is ``𝓗`` unless the loss asks for negative curvature to be clipped.
    """

    loss: CoupledLoss
    target: LossTarget

    def __post_init__(self) -> None:
        builder, loss = self.target.builder, self.loss
        self.builder, self.z = builder, self.target.z
        self.c, self.symbols = self.target.scale(1)
        y = self.target.column("y")
        self.columns = {
            symbol: builder.emit(ir.Gather((k,)), rows, name=symbol.name)
            for symbols, rows in ((loss.z, self.z), (loss.y, y))
            for k, symbol in enumerate(symbols)
        }

    def _at(self, expression: sympy.Expr, name: str) -> Value:
        value = self.builder.pointwise(expression, {**self.columns, **self.symbols}, name=name)
        return in_rows(self.builder, value, self.columns[self.loss.z[0]])

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
        return self.builder.emit(ir.Columns(self.target.first), self._roots(), name="root_columns")

    def sampled_gradient(self) -> Value:
        """Refused by the pipeline: an expression is no model to draw targets from."""
        raise InternalError(f"the loss {self.loss.name!r} has no sampler")

    def projected_gradient(self) -> Value:
        """``C v`` with random signs v: ``[N, K]``."""
        signs = self.builder.emit(
            ir.Random("sign", self.z.spec.shape, self.target.number), name="signs"
        )
        return self.builder.emit(ir.SampleMultiply(), self._roots(), signs, name="g_projected")
