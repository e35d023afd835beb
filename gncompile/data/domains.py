"""Points of a residual problem: fixed ones, and those that are drawn, in boxes and on their faces.

A draw depends on the generator alone, so a number that seeds it (:func:`generator_of`) stands for the points
themselves: nothing else of them has to be stored for a training to go on with the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, is_whole, nearest

How = Literal["sobol", "random", "grid"]
"""Sobol's sequence, scrambled (Owen, 1998); independent uniform draws; the middles of equal cells."""

Draw = Callable[[int, torch.Generator], Any]
"""From a number n and a generator to points ``[n, d]``."""


@dataclass(frozen=True)
class Points:
    """``count`` points, which ``draw(count, generator)`` gives as a tensor ``[count, d]``.

    ``names`` are those of the columns, where they are known, as a :class:`Box` knows them; a problem puts
    them in the order of its inputs. What is ``fixed`` is the same in every draw.

    >>> disc = Points(4, lambda n, generator: torch.rand(n, 2, generator=generator).sqrt())
    >>> tuple(disc.drawn(torch.Generator().manual_seed(0)).shape)
    (4, 2)
    """

    count: int
    draw: Draw
    names: tuple[str, ...] | None = None
    fixed: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.count):
            raise DataError(
                f"{self.count!r} points",
                where="the number of points",
                instead="give a whole number from 1",
            )
        if not callable(self.draw):
            raise DataError(
                f"points are drawn by {self.draw!r}, which cannot be called",
                instead="give a function of a number and a torch.Generator that returns a tensor "
                "[n, coordinates], or a part of a gncompile.Box",
            )

    @classmethod
    def of(cls, given: object, where: str) -> Points:
        """What a user gives as points: these, or a tensor ``[n, d]``."""
        if isinstance(given, Points):
            return given
        given = torch.from_numpy(given) if isinstance(given, np.ndarray) else given
        found, drawn = type(given).__name__, callable(given)
        if isinstance(given, Tensor):
            found, drawn = f"Tensor of shape {list(given.shape)}, {given.dtype}", False
            if given.dim() == 2 and given.is_floating_point():
                if not len(given):
                    raise DataError("there are no points", where=where, instead="give at least one")
                tensor = given.detach().clone()
                return cls(len(tensor), lambda n, generator: tensor, fixed=True)
        raise DataError(
            f"the points are a {found}",
            where=where,
            instead="say how many are to be drawn: gncompile.Points(n, function)"
            if drawn
            else "give a tensor [n, coordinates] of floating point numbers, a part of a box, "
            "Box({...}).interior(n), or gncompile.Points(n, function)",
        )

    def drawn(self, generator: torch.Generator, where: str = "") -> Tensor:
        """The points of one draw, ``[count, d]``; :class:`DataError` where the function gives others."""
        points = self.draw(self.count, generator)
        if not isinstance(points, Tensor) or points.dim() != 2 or len(points) != self.count:
            found = list(points.shape) if isinstance(points, Tensor) else type(points).__name__
            raise DataError(
                f"{self.count} points were asked for, and the function that draws them gave {found}",
                where=where or None,
                instead="return a tensor [n, coordinates] of the n that it is called with",
            )
        return points


def generator_of(*numbers: int) -> torch.Generator:
    """A generator that depends on these numbers: a seed, the number of a draw, that of a term."""
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed) >> 1)


@dataclass(frozen=True)
class Box:
    """A box ``low_i ≤ x_i ≤ high_i`` of named coordinates, and points in it.

    >>> box = Box({"x": (0, 2), "t": (0, 1)})
    >>> sides = box.faces(20, of="x")               # at x = 0 and x = 2, for all t
    >>> start = box.face(20, t=0)
    >>> tuple(box.interior(100).drawn(generator_of(0)).shape)
    (100, 2)
    """

    bounds: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        if not isinstance(self.bounds, Mapping) or not self.bounds:
            raise DataError(
                f"a box of {self.bounds!r}", instead='write Box({"x": (0, 1), "y": (0, 1)})'
            )
        for name, pair in self.bounds.items():
            ends = tuple(pair) if isinstance(pair, tuple | list) else ()
            whole = len(ends) == 2 and all(isinstance(end, int | float | np.number) for end in ends)
            if not whole or not all(map(math.isfinite, ends)) or not ends[0] < ends[1]:
                raise DataError(
                    f"the coordinate {name!r} of a box lies in {pair!r}",
                    instead="give two numbers (low, high), low < high",
                )

    @property
    def names(self) -> tuple[str, ...]:
        """The coordinates in order."""
        return tuple(self.bounds)

    def interior(self, count: int, how: How = "sobol") -> Points:
        """``count`` points in the box."""
        check_how(how)
        return self._points(count, how, lambda n, generator: self._scaled(n, how, generator, {}))

    def face(self, count: int, how: How = "sobol", **at: float) -> Points:
        """``count`` points of the face ``x=0``, or of the cut through the box at any other number.

        Several numbers give an edge: ``box.face(10, x=0, t=0)``.
        """
        check_how(how)
        if not at:
            raise DataError("a face was not named", instead="write box.face(n, x=0)")
        for name, value in at.items():
            self._known(name)
            low, high = self.bounds[name]
            if not isinstance(value, int | float | np.number) or not low <= value <= high:
                raise DataError(
                    f"the face {name} = {value!r} lies outside the box",
                    instead=f"{name} goes from {low} to {high}",
                )
        return self._points(count, how, lambda n, generator: self._scaled(n, how, generator, at))

    def faces(
        self, count: int, of: str | Iterable[str] | None = None, how: How = "sobol"
    ) -> Points:
        """``count`` points of all faces, or of those where the coordinates ``of`` are at their ends.

        Each face has its share by area, the largest remainders being rounded up.
        """
        check_how(how)
        across = self.names if of is None else words(of)
        for name in across:
            self._known(name)
        places = [{name: end} for name in across for end in self.bounds[name]]
        if is_whole(count) and count < len(places):
            raise DataError(
                f"{count} points for {len(places)} faces", instead="give each face one at least"
            )
        areas = [self._area(place) for place in places]

        def draw(n: int, generator: torch.Generator) -> Tensor:
            shares = zip(_shared(n, areas), places, strict=True)
            return torch.cat([self._scaled(each, how, generator, at) for each, at in shares])

        return self._points(count, how, draw)

    def outside(self, points: Tensor, names: tuple[str, ...]) -> tuple[int, str] | None:
        """Row and coordinate of the first of ``points``, columns as ``names``, that lies outside."""
        for column, name in enumerate(names):
            low, high = self.bounds[name]
            slack = 1e-6 * (high - low)  # points that a user computed in single precision
            values = points[:, column]
            beyond = ~((values >= low - slack) & (values <= high + slack))
            if bool(beyond.any()):
                return int(beyond.nonzero()[0]), name
        return None

    def _points(self, count: int, how: How, draw: Draw) -> Points:
        return Points(count, draw, self.names, fixed=how == "grid")

    def _scaled(
        self, count: int, how: How, generator: torch.Generator, at: Mapping[str, float]
    ) -> Tensor:
        free = [name for name in self.names if name not in at]
        unit = _unit(count, len(free), how, generator)
        points = torch.empty(count, len(self.names), dtype=torch.float64)
        for column, name in enumerate(self.names):
            low, high = self.bounds[name]
            points[:, column] = (
                at[name] if name in at else low + (high - low) * unit[:, free.index(name)]
            )
        return points

    def _area(self, at: Mapping[str, float]) -> float:
        return math.prod(high - low for name, (low, high) in self.bounds.items() if name not in at)

    def _known(self, name: str) -> None:
        if name not in self.bounds:
            raise DataError(
                f"the box has no coordinate {name!r}. {nearest(name, self.names)}".rstrip(),
                instead=f"its coordinates are {', '.join(self.names)}",
            )


def check_how(how: object) -> None:
    """Raise :class:`DataError` unless points can be drawn so."""
    if how not in get_args(How):
        raise DataError(
            f"points drawn {how!r}. {nearest(str(how), get_args(How))}".rstrip(),
            instead=f"use one of {', '.join(get_args(How))}",
        )


def words(names: str | Iterable[str]) -> tuple[str, ...]:
    """Names one by one: of a text with blanks or commas between, or of several."""
    return tuple(names.replace(",", " ").split()) if isinstance(names, str) else tuple(names)


def _shared(count: int, areas: list[float]) -> list[int]:
    """``count`` in whole parts by area, the largest remainders rounded up, and each part one at least."""
    exact = [count * area / sum(areas) for area in areas]
    shares = [int(each) for each in exact]
    by_remainder = sorted(range(len(areas)), key=lambda i: shares[i] - exact[i])
    for i in by_remainder[: count - sum(shares)]:
        shares[i] += 1
    while 0 in shares:
        shares[shares.index(max(shares))] -= 1
        shares[shares.index(0)] += 1
    return shares


def _unit(count: int, dimensions: int, how: How, generator: torch.Generator) -> Tensor:
    """Points ``[count, d]`` of the unit cube, float64."""
    if how == "random" or not dimensions:
        return torch.rand(count, dimensions, generator=generator, dtype=torch.float64)
    if how == "sobol":
        seed = int(torch.randint(1 << 62, (), generator=generator))
        engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)
        return engine.draw(count, dtype=torch.float64)
    side = round(count ** (1 / dimensions))
    if side**dimensions != count:
        raise DataError(
            f"{count} points are no grid of as many in each of {dimensions} dimensions",
            instead=f"ask for {side**dimensions}, or for how='sobol'",
        )
    middles = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    return torch.cartesian_prod(*[middles] * dimensions).reshape(count, dimensions)
