"""Products of two activations as matrices, sample by sample: scores and mixtures of attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from .nodes import Op

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Bilinear(Op):
    """``Y_b = A_b B_b`` for ``batch`` pairs of matrices a sample.

    ``A_b: [rows, inner]``, ``B_b: [inner, columns]``; with ``transposed`` the second input holds ``B_bᵀ``.
    """

    batch: int
    rows: int
    inner: int
    columns: int
    transposed: bool = False

    curved: ClassVar[tuple[tuple[int, int], ...]] = ((0, 1),)

    @property
    def left(self) -> tuple[int, ...]:
        """The features of A as dimensions."""
        return self._matrices(self.rows, self.inner)

    @property
    def right(self) -> tuple[int, ...]:
        """The features of B as they are stored."""
        sizes = (self.columns, self.inner) if self.transposed else (self.inner, self.columns)
        return self._matrices(*sizes)

    @property
    def result(self) -> tuple[int, ...]:
        """The features of Y."""
        return self._matrices(self.rows, self.columns)

    def _matrices(self, rows: int, columns: int) -> tuple[int, ...]:
        return (self.batch, rows, columns) if self.batch > 1 else (rows, columns)

    def fits(self, size: int, sizes: list[int]) -> bool:
        a, b = self.rows * self.inner, self.inner * self.columns
        return size == self.batch * self.rows * self.columns and sizes == [
            self.batch * a,
            self.batch * b,
        ]

    def describe(self, inputs: tuple[str, ...]) -> str:
        shape = f"{self.batch} × [{self.rows}, {self.inner}] [{self.inner}, {self.columns}]"
        return f"bilinear[{shape}]({', '.join(inputs)}{'ᵀ' if self.transposed else ''})"

    def plain(self, *inputs: Tensor) -> Tensor:
        a, b = inputs[0].unflatten(-1, self.left), inputs[1].unflatten(-1, self.right)
        return (a @ (b.mT if self.transposed else b)).flatten(1)
