"""A constant grid, an image say, read between its points at places that activations give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..functions.interpolate import Interpolant, interpolated
from .nodes import Op

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Interpolate(Op):
    """``y_cp = T_c(u_cp, v_cp, …)``: elementwise in its inputs, one for each axis of the constant ``grid``.

    Features are ``[C, P]``, P places of each of the C ``channels``; places count the grid's points from 0.
    ``∂y/∂u`` is a node of the same kind with another ``of.order``.
    """

    grid: str
    channels: int
    of: Interpolant

    @property
    def curved(self) -> tuple[tuple[int, int], ...]:  # type: ignore[override]
        """Pairs of axes in which the interpolant is curved: the linear one is in two different ones."""
        slopes = enumerate(map(self.slope, range(len(self.of.size))))
        return tuple((i, j) for i, s in slopes if s for j in range(len(s.of.size)) if s.slope(j))

    def is_constant(self, size: int) -> bool:
        return not any(map(self.slope, range(len(self.of.size))))

    def fits(self, size: int, sizes: list[int]) -> bool:
        return sizes == [size] * len(self.of.size) and size % self.channels == 0

    def slope(self, axis: int) -> Interpolate | None:
        """The node of ``∂y/∂x_axis``, of the same inputs; nothing where that is zero."""
        of = self.of.derivative(axis)
        return None if of is None else Interpolate(self.grid, self.channels, of)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the grid."""
        return (self.channels, *self.of.size)

    def describe(self, inputs: tuple[str, ...]) -> str:
        return f"interpolate[{self.grid}: {self.of}]({', '.join(inputs)})"

    def between(self, grid: Tensor, *places: Tensor) -> Tensor:
        """The same in plain torch, of the grid itself."""
        by_channel = [x.unflatten(-1, (self.channels, -1)) for x in places]
        return interpolated(self.of, grid, by_channel).flatten(-2)
