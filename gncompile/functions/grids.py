"""A function given on a regular grid, which an expression calls: ``image(x + u, y + v)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import sympy
from sympy import Expr
from sympy.core.function import AppliedUndef
from torch import Tensor, dtype

from ..errors import CompileError
from .interpolate import Interpolant, Kernel, Padding, check_grid
from .primitives import number


@dataclass(frozen=True, eq=False)
class Grid:
    """A function of d places by its ``values [*size]`` on a regular grid of d dimensions, one to three.

    ``box``, ``mode`` and ``padding`` are those of :func:`gncompile.interpolate`: the coordinates of the first
    and last point of each axis (default: 0 and size − 1), linear or cubic, and what is outside.

    Raises :class:`~gncompile.errors.CompileError` for values that are not finite, and as ``interpolate``.
    """

    values: Tensor
    box: Sequence[tuple[float, float]] | None = None
    mode: Kernel = "linear"
    padding: Padding = "border"

    def __post_init__(self) -> None:
        kind = self.values.dtype if isinstance(self.values, Tensor) else type(self.values).__name__
        if not isinstance(kind, dtype) or not kind.is_floating_point:
            raise CompileError(
                f"the values of a grid are {kind}",
                instead="give a tensor of floating point numbers: torch.from_numpy(image).double()",
            )
        check_grid(self.values[None], self.mode, self.padding, self.box)
        if not bool(self.values.isfinite().all()):
            raise CompileError(
                "a value of a grid is not finite", instead="fill it before: values.nan_to_num()"
            )

    @property
    def of(self) -> Interpolant:
        """How it is read, at places counted in points."""
        size = tuple(self.values.shape)
        return Interpolant(size, self.mode, self.padding, True, (0,) * len(size))

    def in_points(self, places: Sequence[Expr]) -> tuple[Expr, ...]:
        """Places in coordinates of the box, counted in points."""
        if self.box is None:
            return tuple(places)
        ends = [(number(float(low)), number(float(high))) for low, high in self.box]
        return tuple(
            (x - low) * ((size - 1) / (high - low))
            for x, (low, high), size in zip(places, ends, self.values.shape, strict=True)
        )


def callers(grids: Mapping[str, Grid]) -> dict[str, Callable[..., Expr]]:
    """What an expression calls by the grids' names; ``TypeError`` for another number of places."""

    def caller(name: str, rank: int) -> Callable[..., Expr]:
        def call(*places: Expr) -> Expr:
            if len(places) != rank:
                raise TypeError(
                    f"its grid has {rank} dimensions, and {len(places)} places are given"
                )
            return sympy.Function(name, real=True)(*places)

        return call

    return {name: caller(name, grid.values.dim()) for name, grid in grids.items()}


def calls(expression: Expr) -> list[AppliedUndef]:
    """The grids that are read in an expression, those of inner places first, in an order of their own."""
    found = expression.atoms(AppliedUndef)
    return sorted(found, key=lambda call: (len(call.atoms(AppliedUndef)), str(call)))
