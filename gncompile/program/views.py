"""Operations of a step program that compute nothing: the same numbers under another shape or meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .specs import Dim, Structure


@dataclass(frozen=True)
class Transpose:
    """A view with the last two dimensions exchanged."""


@dataclass(frozen=True)
class AsMatrix:
    """A stored scalar or vector read as a scaled identity or diagonal matrix, or a full one as symmetric."""

    structure: Structure
    size: int


@dataclass(frozen=True)
class Part:
    """A view of the weight or the bias inside ``W̄ = [W, b]``."""

    which: Literal["weight", "bias"]


@dataclass(frozen=True)
class Element:
    """A view of one element of a vector, a scalar."""

    index: int


@dataclass(frozen=True)
class Share:
    """A view of a share of the batch: its last F samples, or its first Q or L.

    Shares of one half or less have no sample in common: on the samples that made a step's factors, the
    quadratic model would find less curvature along it than there is.
    """

    rows: Dim


@dataclass(frozen=True)
class Unflatten:
    """A view of a dimension, the last, as several: features as places and what is at a place, say."""

    sizes: tuple[int, ...]
    axis: int = -1


@dataclass(frozen=True)
class Flatten:
    """A view of ``count`` dimensions, the last, as one; the inverse of :class:`Unflatten`."""

    count: int = 2
    axis: int = -1


@dataclass(frozen=True)
class Permute:
    """A view with the last dimensions in another order: ``order[i]`` stands at place ``i`` of them."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class SampleMatrix:
    """A view of rows ``[N, d²]`` as a matrix for every sample, row by row: ``[N, d, d]``."""

    size: int


@dataclass(frozen=True)
class FeaturesLast:
    """A view with the first dimension moved to the end."""


VIEWS = (
    Transpose, AsMatrix, Part, Element, Share, SampleMatrix, Unflatten, Flatten, Permute, FeaturesLast,
)  # fmt: skip
"""Operations whose result shares memory with their input."""
