"""The rules of a loss that is a sum over outputs."""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ..losses.vocabulary import NOISE, OUTPUT, TARGET, SeparableLoss
from ..program import operations as ir
from ..program.builder import Value
from ..program.specs import Structure
from .loss_target import LossTarget, in_rows


@dataclass
class SeparableRules:
    """``E_n = c Σ_j e(z_j, y_j)``: everything is elementwise; c is times the weights, if any."""

    loss: SeparableLoss
    target: LossTarget

    def __post_init__(self) -> None:
        self.builder, self.z = self.target.builder, self.target.z
        self.outputs = self.z.width
        self.c, self.symbols = self.target.scale(self.outputs)
        self.constants = dict(self.loss.constants)

    def _at(self, expression: sympy.Expr, name: str, noise: Value | None = None) -> Value:
        values = {OUTPUT: self.z, **self.symbols}
        if TARGET in expression.free_symbols:
            values[TARGET] = self.target.column("y")
        for symbol in expression.free_symbols & self.loss.parameters.keys():
            known = symbol.name in self.constants
            read = self.target.constant if known else self.target.column
            values[symbol] = read(symbol.name)
        if noise is not None:
            values[NOISE] = noise
        return self.builder.pointwise(expression, values, name=name)

    def _per_output(self, expression: sympy.Expr, name: str) -> Value:
        """``expression`` as ``[N, K]`` even where it is constant in z."""
        return in_rows(self.builder, self._at(expression, name), self.z)

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
        each = len(curvature.spec.shape) == 1  # the same for every sample
        mean = curvature if each else self.builder.emit(ir.Mean(), curvature, name="hessian_mean")
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
        return self.builder.emit(ir.Columns(self.target.first), root, name="root_columns")

    def sampled_gradient(self) -> Value:
        """``√c g̃`` with targets drawn from the loss's model: ``[N, K]``."""
        noise = self.builder.emit(
            ir.Random(self.loss.noise, self.z.spec.shape, self.target.number), name="noise"
        )
        return self._at(sympy.sqrt(self.c) * self.loss.sampled_slope, "g_sampled", noise)

    def projected_gradient(self) -> Value:
        """``√c √e'' v`` with random signs v: ``[N, K]``."""
        noise = self.builder.emit(
            ir.Random("sign", self.z.spec.shape, self.target.number), name="signs"
        )
        return self._at(sympy.sqrt(self.c) * self.loss.projected_slope, "g_projected", noise)
