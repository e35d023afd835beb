"""A loss of a few outputs that act together, as one expression: the likelihood of a mixture, a norm.

``E_n = c e(z_1, …, z_K, y_1, …, y_T)``, K at most :data:`MAX_OUTPUTS`. Gradient and output Hessian are
derived entry by entry; the square root of the Hessian is taken numerically, sample by sample, from its
eigenvalues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import sympy
from sympy import Expr, Symbol

from ..errors import LossError, message
from ..functions.convexity import Convexity
from ..functions.derive import differentiate
from ..functions.stable_forms import stable
from .coupled_check import seen_convexity
from .loss_scale import PER_SAMPLE, Scale

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
    and all targets lie in ``targets``. Where ``e`` is not convex, ``negative_curvature="clip"`` lets the
    curvature methods use ``𝓗₊``, the output Hessian with its negative eigenvalues set to zero, sample by
    sample.
    """

    name: str
    expression: Expr
    outputs: int
    targets_count: int
    scale: Scale = PER_SAMPLE
    targets: tuple[float, float] = (-math.inf, math.inf)
    negative_curvature: NegativeCurvature = "refuse"

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
        """The verdict on ``𝓗 ≥ 0``: exact for a constant 𝓗, else by eigenvalues at many points."""
        entries = self.hessian.values()
        if all(entry.is_number for entry in entries):
            matrix = sympy.Matrix(self.outputs, self.outputs, lambda i, j: self.entry(i, j))
            if matrix.is_positive_semidefinite:
                return Convexity(
                    "convex", "the output Hessian is constant and has no negative eigenvalue"
                )
        return seen_convexity(self)

    def entry(self, i: int, j: int) -> Expr:
        """``∂²e/∂z_i∂z_j`` in either order."""
        return self.hessian[min(i, j), max(i, j)]

    def check_output(self, shape: tuple[int, ...]) -> None:
        """Raise :class:`LossError` unless the per-sample output is a row of K numbers."""
        if shape != (self.outputs,):
            batch = ", ".join(["N", *map(str, shape)])
            raise LossError(
                message(
                    f"the loss {self.name!r} couples {self.outputs} outputs, the network returns [{batch}]",
                    where="the model's output",
                    instead=f"return [N, {self.outputs}]",
                )
            )

    def check_target(
        self, z_shape: tuple[int, ...], z_dtype: torch.dtype, target: torch.Tensor
    ) -> None:
        """Raise :class:`BatchError` unless ``target`` is ``[N, T]``, of the output's dtype and in bounds."""
        from .losses_torch import check_elementwise_target

        shape = (z_shape[0], self.targets_count)
        check_elementwise_target(self.name, shape, z_dtype, target, self.targets)

    def describe(self) -> str:
        """One line: value, Hessian, scale."""
        clipped = ", negative eigenvalues set to zero" if self.negative_curvature == "clip" else ""
        hessian = f"𝓗 = ∂²e/∂z² [{self.outputs}, {self.outputs}]{clipped}"
        return f"{self.name}: e = {self.expression}, {hessian}, {self.scale}"


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
            message(
                f"the loss {name!r} {found}",
                where=f"e = {expression}",
                instead="use z and y for a loss summed over outputs, or z1 … zK and y1 … yT with K at most "
                f"{MAX_OUTPUTS}, not both",
            )
        )
    return CoupledLoss(
        name,
        expression,
        count,
        highest["y"] or 1,
        targets=targets,
        negative_curvature=negative_curvature,
    )
