"""The Jacobian of per-sample maps that mix features: of every sample and place a diagonal minus a rank one.

Features are P places of d each. With ``J_s = D_s (I − c a_s b_sᵀ)`` at place s and ``A = c D a``, E the mean
over the batch, and M a block of curvature between all places::

    E[J_sᵀ M_st J_t] = E[D_s M_st D_t] − T_st − (T_ts)ᵀ
    T_st = E[b_s (D_t u_st − ½ (A_tᵀ u_st) b_t)ᵀ],  u_st = M_stᵀ A_s

so that KFRA's average is exact and costs a few products over the batch, ``O(N (P d)²)``
(docs/mathematics.md#maps-that-mix-features).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import TypeGuard

import sympy

from ..functions.primitives import as_float
from ..program import operations as ir
from ..program.builder import Factor, ProgramBuilder, Value
from .jacobians import Jacobian

d, g, k, u, v = sympy.symbols("d g k u v", real=True)


@dataclass(frozen=True)
class Places:
    """Features ``[.., N, P d]`` seen as ``[.., N, P, d]`` at P places; as they are if there is one."""

    builder: ProgramBuilder
    count: int

    def of(self, value: Value) -> Value:
        """The features at places."""
        if self.count == 1:
            return value
        sizes = (self.count, value.width // self.count)
        return self.builder.emit(ir.Unflatten(sizes), value)

    def flat(self, value: Value) -> Value:
        """Features at places as features again."""
        return value if self.count == 1 else self.builder.emit(ir.Flatten(), value)

    def first(self, value: Value) -> Value:
        """``[N, P, e]`` as ``[P, N, e]``, for products of every place."""
        return value if self.count == 1 else self.builder.emit(ir.Permute((1, 0, 2)), value)

    def over_rows(self, value: Value) -> Value:
        """``[N, P, e]`` as ``[N, 1, P, e]``, to meet the rows of a matrix of every sample."""
        if self.count == 1:
            return self.builder.emit(ir.Unflatten((1, value.width)), value)
        return self.builder.emit(ir.Unflatten((1, self.count), axis=-2), value)

    def rows(self, m: Value) -> Value:
        """A matrix ``[P d, e]`` as ``[P, d, e]``."""
        if self.count == 1:
            return m
        sizes = (self.count, int(m.spec.shape[-2]) // self.count)
        return self.builder.emit(ir.Unflatten(sizes, axis=-2), m)

    def matrix(self, m: Value) -> Value:
        """``[P, d, e]`` as ``[P d, e]``."""
        return m if self.count == 1 else self.builder.emit(ir.Flatten(axis=-2), m)

    def moments(self, a: Value, b: Value) -> Value:
        """``E[a_s b_sᵀ]`` of every place from ``[P, N, d]`` and ``[P, N, e]``."""
        return self.builder.emit(ir.Moment() if self.count == 1 else ir.PlaceMoments(), a, b)


@dataclass(frozen=True)
class RankOne(Jacobian):
    """``J_s = diag(d) (I − c a bᵀ)`` of every sample and place.

    Each of d, a and b is ``[N, P, d]``, ``[N, P, 1]`` or a number, b at least ``[N, P, d]``; c is one of the
    latter two.
    """

    places: Places
    diagonal: Factor
    a: Factor
    b: Value
    weight: Factor = 1.0

    def push(self, r: Value, name: str) -> Value:
        """``d ⊙ (r − c (bᵀr) a)``."""
        r = self.places.of(r)
        along = self._sum(self.weight, self.b, r)
        factors = {d: self.diagonal, g: r, k: along, u: self.a}
        return self.places.flat(self._written(d * (g - k * u), factors, name))

    def pull(self, vectors: Value, name: str) -> Value:
        """``e − c (aᵀe) b`` with ``e = d ⊙ g``."""
        vectors, diagonal = self.places.of(vectors), self.diagonal
        if self._is_wide(diagonal):
            vectors, diagonal = self._value(diagonal, vectors), 1.0
        along = self._sum(self.weight, self.a, diagonal, vectors)
        factors = {d: diagonal, g: vectors, k: along, u: self.b}
        return self.places.flat(self._written(d * g - k * u, factors, name))

    def half(self, m: Value, name: str) -> Value:
        """``E[D_s] M_s − E[b_s A_sᵀ] M_s``."""
        builder, places, m = self.builder, self.places, self.builder.dense(m)
        moments = places.moments(places.first(self.b), places.first(self._left))
        mixed = places.matrix(builder.emit(ir.MatMul(), moments, places.rows(m)))
        return self._written(u - v, {u: builder.scale_rows(m, self._everywhere), v: mixed}, name)

    def average(self, m: Value, other: Jacobian, name: str) -> Value:
        """``E[JᵀMJ]`` as above; with another Jacobian the means are taken of each, as by ``half``."""
        if other != self:
            return super().average(m, other, name)
        builder, places, m = self.builder, self.places, self.builder.dense(m)
        product = builder.emit(ir.MatMul(), places.first(self._left), places.rows(m))
        product = places.of(product)
        factors = {
            d: self.diagonal, k: self._sum(product, self._left), u: product, v: self.b
        }  # fmt: skip
        inner = places.flat(self._written(d * u - k * v / 2, factors))
        cross = places.matrix(places.moments(places.first(self.b), inner))
        scaled = builder.schur(m, self._everywhere, self._everywhere)
        return self._written(u - v, {u: scaled, v: builder.plus_transpose(cross)}, name)

    def each(self, m: Value, name: str) -> Value:
        """The rows of ``M_nᵀ`` pulled, ``[N, e, P d]``."""

        def over_rows(factor: Factor) -> Factor:
            return self.places.over_rows(factor) if isinstance(factor, Value) else factor

        lifted = replace(
            self, diagonal=over_rows(self.diagonal), a=over_rows(self.a),
            b=self.places.over_rows(self.b), weight=over_rows(self.weight),
        )  # fmt: skip
        pulled = lifted.pull(self.builder.emit(ir.Transpose(), m), name)
        return self.builder.emit(ir.Transpose(), pulled)

    @property
    def _left(self) -> Value:
        """``A = c d ⊙ a``, ``[N, P, d]``."""
        return self._wide(self._product(self.weight, self.diagonal, self.a))

    @property
    def _everywhere(self) -> Factor:
        """d as a number or ``[N, P d]``."""
        if isinstance(self.diagonal, float):
            return self.diagonal
        return self.places.flat(self._wide(self.diagonal))

    def _wide(self, factor: Factor) -> Value:
        """A factor at every feature."""
        if self._is_wide(factor):
            return factor
        value = self.builder.pointwise(factor) if isinstance(factor, float) else factor
        return self.builder.emit(ir.Repeat(self.b.spec.shape), value)

    def _product(self, *factors: Factor) -> Factor:
        return reduce(self.builder.times, factors)

    def _value(self, *factors: Factor) -> Value:
        """A product of factors of which one at least is a value."""
        product = self._product(*factors)
        assert isinstance(product, Value)
        return product

    def _sum(self, *factors: Factor) -> Value:
        """The sum of a product over the features of a place; what is one number a place stands before it."""
        wide = [factor for factor in factors if self._is_wide(factor)]
        narrow = [factor for factor in factors if not self._is_wide(factor)]
        total = self.builder.emit(ir.RowSum(), self._value(*wide))
        return self._value(*narrow, total)

    def _written(
        self, expression: sympy.Expr, factors: Mapping[sympy.Symbol, Factor], name: str = ""
    ) -> Value:
        numbers = {s: as_float(f) for s, f in factors.items() if isinstance(f, float)}
        values = {s: f for s, f in factors.items() if isinstance(f, Value)}
        return self.builder.pointwise(expression.xreplace(numbers), values, name=name)

    def _is_wide(self, factor: Factor) -> TypeGuard[Value]:
        """Whether there is a number for every feature."""
        return isinstance(factor, Value) and factor.width == self.b.width
