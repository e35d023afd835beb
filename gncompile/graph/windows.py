"""Where windows stand on a grid: the geometry that convolutions and pooling share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True)
class Window:
    """``kernel`` taps, ``dilation`` apart, that move by ``stride`` over a grid of ``size``.

    One number for each dimension. The grid goes on by ``padding`` at both of its ends; with ``ceil`` a last
    window may hang over, if it begins before the padding at the end. Places and taps are counted row by row,
    as torch counts them.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False

    @property
    def reach(self) -> tuple[int, ...]:
        """From the first tap of a window to behind its last."""
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel, strict=True))

    @property
    def places(self) -> tuple[int, ...]:
        """How many windows there are."""
        axes = zip(self.size, self.stride, self.padding, self.reach, strict=True)
        return tuple(self._places(*axis) for axis in axes)

    def _places(self, size: int, stride: int, padding: int, reach: int) -> int:
        room = size + 2 * padding - reach
        count = (-(-room // stride) if self.ceil else room // stride) + 1
        late = self.ceil and (count - 1) * stride >= size + padding
        return count - late

    @property
    def overhang(self) -> tuple[int, ...]:
        """How far the last window goes beyond the grid; negative where it ends before."""
        axes = zip(self.places, self.stride, self.reach, self.padding, self.size, strict=True)
        return tuple((t - 1) * s + r - p - n for t, s, r, p, n in axes)

    @property
    def beyond(self) -> tuple[int, ...]:
        """How many points of the padded grid no window reaches at its end."""
        return tuple(p - over for p, over in zip(self.padding, self.overhang, strict=True))

    @property
    def disjoint(self) -> bool:
        """Whether no two windows meet."""
        return all(s >= r for s, r in zip(self.stride, self.reach, strict=True))

    @property
    def tiles(self) -> bool:
        """Whether every point of the grid, and no other, is in one window."""
        exact = (t * k == n for t, k, n in zip(self.places, self.kernel, self.size, strict=True))
        return self.disjoint and self.stride == self.kernel and not any(self.padding) and all(exact)

    @property
    def taps(self) -> tuple[tuple[int, ...], ...]:
        """The taps of a window by their numbers along each dimension."""
        return tuple(product(*map(range, self.kernel)))

    @property
    def sources(self) -> tuple[tuple[int, ...], ...]:
        """For every place the point of the grid behind each tap, -1 outside."""
        return tuple(
            tuple(self._source(place, tap) for tap in self.taps)
            for place in product(*map(range, self.places))
        )

    def _source(self, place: tuple[int, ...], tap: tuple[int, ...]) -> int:
        point, axes = 0, zip(place, self.stride, tap, self.dilation, self.padding, strict=True)
        for (t, s, k, d, p), size in zip(axes, self.size, strict=True):
            at = t * s + k * d - p
            if not 0 <= at < size:
                return -1
            point = point * size + at
        return point

    def __str__(self) -> str:
        return " ".join(
            f"{name}{_times(getattr(self, name))}" for name in ("size", "kernel", "stride")
        )


@dataclass(frozen=True)
class Geometry:
    """A convolution from ``inputs`` to ``outputs`` channels, in so many ``groups``.

    A batch of grids is ``[N, channels · points]``, a channel after the other; the weight is ``[outputs,
    columns]`` with ``columns = inputs / groups · taps``.
    """

    window: Window
    inputs: int
    outputs: int
    groups: int = 1

    @property
    def columns(self) -> int:
        """What one output channel sees at a place."""
        return self.inputs // self.groups * math.prod(self.window.kernel)

    @property
    def places(self) -> int:
        """How many places there are."""
        return math.prod(self.window.places)

    @property
    def size(self) -> int:
        """Input features of a sample."""
        return self.inputs * math.prod(self.window.size)

    @property
    def patches(self) -> tuple[int, ...]:
        """The feature behind every column at every place, group by group; -1 outside the grid."""
        points, per_group = math.prod(self.window.size), self.inputs // self.groups
        return tuple(
            channel * points + source if source >= 0 else -1
            for group in range(self.groups)
            for sources in self.window.sources
            for channel in range(group * per_group, (group + 1) * per_group)
            for source in sources
        )

    def __str__(self) -> str:
        groups = f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{self.inputs}→{self.outputs} {self.window}{groups}"


def _times(numbers: tuple[int, ...]) -> str:
    return " " + "×".join(map(str, numbers))
