"""What a value of a step program is: its dimensions by name, and the structure of a matrix.

Dimensions are integers or symbols bound when the program meets a batch: ``N`` samples, of which the last
``F`` are used for the curvature factors and the first ``Q`` for the quadratic model; ``S`` columns in a
chunk of KFLR. A matrix carries a :class:`Structure`: what is stored is a scalar, a vector or the full matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

Dim = int | str

SAMPLES = ("N", "F", "Q", "L")
"""Dimensions of samples: the batch; its last for the factors; its first for the quadratic model, and for
the step sizes of the layers."""
COLUMNS = "S"
"""The dimension of a chunk of KFLR's columns."""


class Structure(Enum):
    """Structure of a matrix (docs/mathematics.md#structure), ordered by what is a special case of what."""

    SCALED_IDENTITY = "scaled identity"
    DIAGONAL = "diagonal"
    SYMMETRIC = "symmetric"
    GENERAL = "general"

    def __str__(self) -> str:
        return self.value

    @property
    def above(self) -> frozenset[Structure]:
        """The structures that this one is a special case of, and itself."""
        return frozenset({self}).union(*(wider.above for wider in WIDER.get(self, ())))

    def __le__(self, other: Structure) -> bool:
        """Whether this is a special case of the other, or the same."""
        return other in self.above

    def join(self, other: Structure) -> Structure:
        """The narrowest structure that both are special cases of."""
        common = self.above & other.above
        return max(common, key=lambda structure: len(structure.above))


WIDER: Mapping[Structure, tuple[Structure, ...]] = {
    Structure.SCALED_IDENTITY: (Structure.DIAGONAL,),
    Structure.DIAGONAL: (Structure.SYMMETRIC,),
    Structure.SYMMETRIC: (Structure.GENERAL,),
}
"""Of what each structure is the next special case; several may follow one, and one several."""


@dataclass(frozen=True)
class Spec:
    """Shape of what is stored and, for a matrix, how it is read from that.

    ``SCALED_IDENTITY`` stores a scalar ``[]``, ``DIAGONAL`` a vector ``[size]``, the others ``[size, size]``
    or ``[rows, cols]``. ``size`` is the dimension of the square matrix, 0 for values that are no matrix.
    """

    shape: tuple[Dim, ...]
    structure: Structure = Structure.GENERAL
    size: int = 0

    @property
    def is_thin(self) -> bool:
        """Whether only a scalar or a diagonal of the matrix is stored."""
        return self.structure <= Structure.DIAGONAL

    @property
    def samples(self) -> Dim:
        """The dimension of samples, one of :data:`SAMPLES`; ``""`` where there is none."""
        return next((d for d in self.shape if d in SAMPLES), "")

    @property
    def samples_axis(self) -> int:
        """Where that dimension stands, counted from the end: -2 for rows ``[N, d]``."""
        return self.shape.index(self.samples) - len(self.shape)

    @property
    def has_columns(self) -> bool:
        """Whether this holds a chunk of KFLR's columns."""
        return COLUMNS in self.shape

    @property
    def of_a_sample(self) -> tuple[Dim, ...]:
        """The dimensions of one sample's (and column's) share: features, or a matrix."""
        return tuple(d for d in self.shape if d not in (*SAMPLES, COLUMNS))

    def __str__(self) -> str:
        text = "[" + ", ".join(str(d) for d in self.shape) + "]"
        if self.structure is Structure.GENERAL:
            return text
        return f"{text} {self.structure} {self.size}"


def matrix(structure: Structure, size: int) -> Spec:
    """The spec of a square matrix with that structure."""
    stored: dict[Structure, tuple[Dim, ...]] = {
        Structure.SCALED_IDENTITY: (),
        Structure.DIAGONAL: (size,),
    }
    return Spec(stored.get(structure, (size, size)), structure, size)
