"""The terms of a residual problem, and their points as one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.domains import Box, Points, generator_of
from ..errors import CompileError, DataError, expected_got, nearest
from ..frontends.equations import Names
from ..functions.declarations import check_name
from ..functions.robust import ROOTS, scales
from ..training.records import Record

Values = Tensor | np.ndarray[Any, Any] | Sequence[Any]
"""Numbers: a tensor, an array or a list."""

Given = Values | Callable[[Tensor], Values]
"""A field: its values at the points, or a function of them."""


@dataclass(frozen=True)
class Term:
    """An equation, or several, that hold at ``points``; see :func:`residuals`.

    ``equation`` is a residual as text or sympy expression, ``"u__t - u__x__x"``, a list of some, a dict of
    them by name, or an object with ``.equations``, as PhysicsNeMo's are. ``points`` are a tensor ``[n, d]``,
    a part of a :class:`~gncompile.Box`, or :class:`~gncompile.Points`. ``weight`` is w_t. ``fields`` are
    data at the points by name, ``[n]``, or functions of the points. ``loss`` is ρ, ``"mse"``, or one by which
    residuals above ``scale``, δ, count less, ``"soft_l1"``, ``"huber"`` or ``"geman_mcclure"``: see
    :mod:`gncompile.functions.robust`. δ is 1 by default; ``"mse"`` takes none.
    """

    equation: Any
    points: Any
    weight: float = 1.0
    fields: Mapping[str, Given] = field(default_factory=dict)
    loss: str = "mse"
    scale: float | None = None

    @property
    def loss_said(self) -> str:
        """``mse``, or the loss and its scale."""
        return self.loss if self.scale is None else f"{self.loss}, δ = {self.scale:g}"


@dataclass(frozen=True)
class Batch:
    """The points of all terms one below another: ``x [N, d]``, ``data``, weights ``[N]``, rows by term."""

    x: Tensor
    data: Tensor
    weight: Tensor
    rows: Mapping[str, slice]

    def pair(self, equations: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Inputs and targets, as a trainer takes them: residuals are to be 0."""
        return (self.x, self.data), (self.x.new_zeros(len(self.x), equations), self.weight)

    def energy(self, name: str, z: Tensor) -> Tensor:
        """``E_t`` of a term, the half mean square of its outputs; those of all are ``z [N, K]``."""
        return z[self.rows[name]].square().sum(dim=1).mean() / 2

    def energies(self, z: Tensor) -> dict[str, float]:
        """``E_t`` of every term by name."""
        return {name: float(self.energy(name, z)) for name in self.rows}


@dataclass(frozen=True)
class Sampling:
    """The points and fields of all terms, for a network of these names, dtype and device."""

    terms: Mapping[str, Term]
    names: Names
    box: Box | None
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def points(self) -> dict[str, Points]:
        """The points of each term."""
        return {name: Points.of(term.points, _at(name)) for name, term in self.terms.items()}

    def batch(self, draw: int = 0, seed: int = 0) -> Batch:
        """The points of all terms; those that are drawn depend on ``seed`` and the number of the draw."""
        parts = []
        for number, name in enumerate(self.terms):
            x = self.points[name].drawn(generator_of(seed, draw, number), _at(name))
            x = self.in_order(x, self.points[name].names, _at(name))
            parts.append((x, self._data(number, x)))
        sizes = [len(x) for x, _ in parts]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        rows = {n: slice(i, i + k) for n, i, k in zip(self.terms, starts, sizes, strict=True)}
        weight = [
            x.new_full((len(x),), term.weight * sum(sizes) / len(x))
            for (x, _), term in zip(parts, self.terms.values(), strict=True)
        ]
        x, data = (torch.cat(each) for each in zip(*parts, strict=True))
        return Batch(x, data, torch.cat(weight), rows)

    def in_order(self, points: object, names: tuple[str, ...] | None, where: str) -> Tensor:
        """The columns of points as the network takes them, in its dtype."""
        inputs, x = self.names.inputs, tensor_of(points, "the points", where)
        if names is not None and set(names) != set(inputs):
            raise DataError(
                "the points have other coordinates than the network\n"
                + expected_got(", ".join(inputs), ", ".join(names)),
                where=where,
                instead="name the coordinates of the box like the inputs",
            )
        if x.dim() != 2 or x.shape[1] != len(inputs):
            raise DataError(
                "the points have another shape\n"
                + expected_got(f"[n, {len(inputs)}]", list(x.shape)),
                where=where,
                instead=f"give a column for each of {', '.join(inputs)}, in this order",
            )
        x = x if names is None else x[:, [names.index(name) for name in inputs]]
        if not bool(x.isfinite().all()):
            raise DataError("a point is not finite", where=where, instead="leave it out")
        if self.box is not None:
            self._require_inside(x, self.box, where)
        return x.to(self.device, self.dtype)

    def _require_inside(self, x: Tensor, box: Box, where: str) -> None:
        inputs = self.names.inputs
        if set(box.names) != set(inputs):
            raise DataError(
                "the box has other coordinates than the network\n"
                + expected_got(", ".join(inputs), ", ".join(box.names)),
                where="box",
            )
        if found := box.outside(x, inputs):
            row, name = found
            low, high = box.bounds[name]
            raise DataError(
                f"the point {row} has {name} = {float(x[row, inputs.index(name)]):.6g}, outside the box",
                where=where,
                instead=f"{name} goes from {low} to {high}; leave it out, or give a larger box",
            )

    def _data(self, number: int, x: Tensor) -> Tensor:
        """The second input: the term's number, and the fields, 0 where a term has them not."""
        name = list(self.terms)[number]
        data = x.new_zeros(len(x), 1 + len(self.names.fields))
        data[:, 0] = number
        for each, given in self.terms[name].fields.items():
            if not callable(given) and not self.points[name].fixed:
                raise DataError(
                    f"the field {each!r} is a tensor, and the points of the term are drawn",
                    where=_at(name),
                    instead="give a function of the points, or fixed points",
                )
            values = given(x.clone()) if callable(given) else given
            data[:, 1 + self.names.fields.index(each)] = field_values(each, values, x, _at(name))
        return data


def field_values(name: str, given: object, x: Tensor, where: str) -> Tensor:
    """The values ``[n]`` of a field at points ``x [n, d]``, in their dtype."""
    values = tensor_of(given, f"the field {name!r}", where)
    if values.numel() != len(x) or not bool(values.isfinite().all()):
        raise DataError(
            f"the field {name!r} has the shape {list(values.shape)}, or is not finite",
            where=f"{where}, {len(x)} points",
            instead="give one finite number a point",
        )
    return values.reshape(-1).to(x)


def tensor_of(given: object, what: str, where: str) -> Tensor:
    """Real numbers that a user gives as a tensor, an array or lists, as a tensor without gradient.

    Lists become float64. :class:`DataError` for other things, complex numbers among them.
    """
    try:
        # NumPy's copy has strides that torch takes, and lists are not rounded to float32.
        values = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError, RuntimeError):
        values = None
    if values is None or values.is_complex():
        kind = f" of {given.dtype}" if isinstance(given, Tensor | np.ndarray) else ""
        raise DataError(
            f"{what}: no real numbers\n"
            + expected_got("a tensor, an array or a list of numbers", type(given).__name__ + kind),
            where=where,
            instead="give real numbers; of complex ones real and imaginary part are two columns",
        )
    return values.detach()


def _at(term: str) -> str:
    return f"points of the term {term!r}"


def terms_of(
    given: Mapping[str, Any],
    points: Mapping[str, Any],
    weights: Mapping[str, float],
    dtype: torch.dtype,
) -> dict[str, Term]:
    """Terms by name, each with points, a weight, and a scale if its loss has one.

    Raises :class:`CompileError` where they are not given, or are none of ``dtype``.
    """
    if not isinstance(given, Mapping) or not given:
        raise CompileError("there are no terms", instead='write terms={"interior": "u__x__x + 1"}')
    reserved = frozenset(Record.__dataclass_fields__)
    found: dict[str, Term] = {}
    for name, each in given.items():
        check_name("term", name, reserved=reserved)
        if isinstance(each, Term):
            term = each
        elif name in points:
            term = Term(each, points[name])
        else:
            raise CompileError(
                f"the term {name!r} has no points. {nearest(name, points)}".rstrip(),
                where=f"terms={{{name!r}: ...}}",
                instead=f"give points={{{name!r}: ...}}, or gncompile.Term(equation, points)",
            )
        what = f"the weight of the term {name!r}"
        weight = _positive(what, weights.get(name, term.weight), "give a positive number")
        if (loss := str(term.loss)) not in ROOTS:
            raise CompileError(
                f"the term {name!r} has an unknown loss {loss!r}. {nearest(loss, ROOTS)}".rstrip(),
                instead=f"use one of {', '.join(ROOTS)}",
            )
        found[name] = replace(term, weight=weight, loss=loss, scale=_scale(name, term, dtype))
    for what, names in (("points", points), ("weights", weights)):
        for name in names:
            if name not in found:
                raise CompileError(
                    f"{what} for a term {name!r} that there is not. {nearest(name, found)}".rstrip(),
                    instead=f"the terms are {', '.join(found)}",
                )
    return found


def _scale(name: str, term: Term, dtype: torch.dtype) -> float | None:
    """The scale of a term's loss, None of ``mse``, which has none."""
    if term.loss == "mse":
        if term.scale is not None:
            raise CompileError(
                f"the term {name!r} has a scale, and the loss mse, which takes none",
                instead=f"give a loss too, one of {', '.join(n for n in ROOTS if n != 'mse')}, or no scale",
            )
        return None
    scale = _positive(
        f"the scale of the loss of the term {name!r}",
        1.0 if term.scale is None else term.scale,
        "give a positive number, the size of a residual from which it counts less",
    )
    low, high = scales(dtype)
    if not low <= scale <= high:
        raise CompileError(
            f"the scale of the loss of the term {name!r} is {scale:g}, and lies from {low:.2g} to "
            f"{high:.2g} in {str(dtype).removeprefix('torch.')}",
            instead="write the equation in other units, so that residuals are nearer to 1"
            + ", or make the network float64: net.double()" * (dtype != torch.float64),
        )
    return scale


def _positive(what: str, value: object, instead: str) -> float:
    """``value`` as a float; :class:`CompileError` unless it is a positive and finite number."""
    try:
        number = float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # of whole numbers
        number = value = math.inf
    if not 0 < number < math.inf:
        raise CompileError(f"{what} is {value!r}", instead=instead)
    return number
