"""The operations of a step program on grids: convolutions, their adjoints, pooling. Grammar::

op ::= Convolve(geometry)                     W ⋆ x [+ b]
    |  ConvolveAdjoint(geometry)              its adjoint in x: vectors back, or a transposed convolution
    |  ConvolveGradient(geometry, homogeneous)  its adjoint in W̄ = [W, b], the mean over the samples
    |  Patches(geometry)                      what a weight sees at every place
    |  MaxPool(window) | SumPool(window)      of the taps of every window
    |  Winners(window)                        which tap is the maximum
    |  Pick(window) | Spread(window)          from and to the winners; Spread also to all taps
    |  BlockDiagonal(blocks)

A batch of grids is a value ``[.., N, C·P]`` of C channels of P points, or the same for columns and rows of
matrices: whatever stands before the features is one batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..graph.windows import Geometry, Window
from .specs import Dim, Spec
from .views import FeaturesLast as FeaturesLast


@dataclass(frozen=True)
class Windowed:
    """An operation that looks at grids through windows."""

    def result(self, inputs: Sequence[Spec]) -> Spec:
        """The spec of the result."""
        raise NotImplementedError

    def grids(self, inputs: tuple[str, ...], result: str) -> tuple[str, ...]:
        """Which of its operands and result are grids, read and written as such: nothing may pad them."""
        return (*inputs, result)

    def flops(self, sizes: Sequence[Sequence[int]], out: int) -> int:
        """Operations for operands of these ``sizes`` and ``out`` elements of the result."""
        return 0


@dataclass(frozen=True)
class Convolve(Windowed):
    """``h = W ⋆ x + b`` (inputs x, W[, b]): ``[.., N, C·P] → [.., N, out·T]`` for T places."""

    geometry: Geometry

    def result(self, inputs: Sequence[Spec]) -> Spec:
        return _with_features(inputs[0], self.geometry.outputs * self.geometry.places)

    def grids(self, inputs: tuple[str, ...], result: str) -> tuple[str, ...]:
        return (inputs[0], result)

    def flops(self, sizes: Sequence[Sequence[int]], out: int) -> int:
        return out * (2 * self.geometry.columns + len(sizes) - 2)


@dataclass(frozen=True)
class ConvolveAdjoint(Windowed):
    """``W ∗ g`` (inputs g, W): what :class:`Convolve` sums, back to where it comes from."""

    geometry: Geometry

    def result(self, inputs: Sequence[Spec]) -> Spec:
        return _with_features(inputs[0], self.geometry.size)

    def grids(self, inputs: tuple[str, ...], result: str) -> tuple[str, ...]:
        return (inputs[0], result)

    def flops(self, sizes: Sequence[Sequence[int]], out: int) -> int:
        return 2 * math.prod(sizes[0]) * self.geometry.columns


@dataclass(frozen=True)
class ConvolveGradient(Windowed):
    """``(1/N) Σ g ⋆ x`` (inputs g, x) over samples and places: ``[out, columns]``, and with ``homogeneous``
    the bias's column behind it, times ``coordinate``: 0 for a use of a layer without its bias."""

    geometry: Geometry
    homogeneous: bool
    coordinate: float = 1.0

    def result(self, inputs: Sequence[Spec]) -> Spec:
        return Spec((self.geometry.outputs, self.geometry.columns + int(self.homogeneous)))

    def grids(self, inputs: tuple[str, ...], result: str) -> tuple[str, ...]:
        return inputs

    def flops(self, sizes: Sequence[Sequence[int]], out: int) -> int:
        return 2 * math.prod(sizes[0]) * self.geometry.columns


@dataclass(frozen=True)
class Patches(Windowed):
    """``[columns, .., N, groups·T]``: the weight's columns one after the other, each at all places.

    Kept so, a column is copied at once, and moments read it as it is; :class:`FeaturesLast` are its rows.
    """

    geometry: Geometry

    def result(self, inputs: Sequence[Spec]) -> Spec:
        g = self.geometry
        return Spec((g.columns, *inputs[0].shape[:-1], g.groups * g.places))


@dataclass(frozen=True)
class MaxPool(Windowed):
    """The maximum of every window, of nothing but the grid: ``[.., N, C·P] → [.., N, C·T]``."""

    window: Window

    def result(self, inputs: Sequence[Spec]) -> Spec:
        return _pooled(inputs[0], self.window)

    def flops(self, sizes: Sequence[Sequence[int]], out: int) -> int:
        return out * len(self.window.taps)


@dataclass(frozen=True)
class SumPool(Windowed):
    """The sum of every window, of nothing but the grid."""

    window: Window

    def result(self, inputs: Sequence[Spec]) -> Spec:
        return _pooled(inputs[0], self.window)

    def flops(self, sizes: Sequence[Sequence[int]], out: int) -> int:
        return out * len(self.window.taps)


@dataclass(frozen=True)
class Winners(Windowed):
    """The number of the first tap that holds the maximum (inputs x, its maxima), as a whole number."""

    window: Window

    def result(self, inputs: Sequence[Spec]) -> Spec:
        return inputs[1]

    def flops(self, sizes: Sequence[Sequence[int]], out: int) -> int:
        return out * len(self.window.taps)


@dataclass(frozen=True)
class Pick(Windowed):
    """What stands at the winners (inputs r, the winners): ``[.., N, C·P] → [.., N, C·T]``."""

    window: Window

    def result(self, inputs: Sequence[Spec]) -> Spec:
        return _pooled(inputs[0], self.window)


@dataclass(frozen=True)
class Spread(Windowed):
    """The adjoint of :class:`Pick` (inputs g, the winners), or of :class:`SumPool` (input g)."""

    window: Window

    def result(self, inputs: Sequence[Spec]) -> Spec:
        points, places = math.prod(self.window.size), math.prod(self.window.places)
        return _with_features(inputs[0], _features(inputs[0]) // places * points)

    def flops(self, sizes: Sequence[Sequence[int]], out: int) -> int:
        return math.prod(sizes[0]) * len(self.window.taps)


@dataclass(frozen=True)
class BlockDiagonal(Windowed):
    """A symmetric M within its diagonal blocks, else zero."""

    blocks: int

    def result(self, inputs: Sequence[Spec]) -> Spec:
        return inputs[0]

    def grids(self, inputs: tuple[str, ...], result: str) -> tuple[str, ...]:
        return ()


GridOp = (
    Convolve | ConvolveAdjoint | ConvolveGradient | Patches | MaxPool | SumPool | Winners
    | Pick | Spread | BlockDiagonal
)  # fmt: skip


def _features(spec: Spec) -> int:
    return int(spec.shape[-1])


def _with_features(spec: Spec, count: Dim) -> Spec:
    return Spec((*spec.shape[:-1], count))


def _pooled(spec: Spec, window: Window) -> Spec:
    points, places = math.prod(window.size), math.prod(window.places)
    return _with_features(spec, _features(spec) // points * places)
