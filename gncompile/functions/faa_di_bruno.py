"""Derivatives of compositions, of any order: Faà di Bruno's formula, by sympy.

For ``y = φ(x_1, …, x_k)`` whose arguments move with features ``t``, a partial derivative ``α`` of y is a sum
over the partitions of α into blocks, and over the arguments that take the blocks::

    ∂_α y = Σ_{B_1|…|B_m = α} Σ_{i_1…i_m} ∂^m φ/∂x_{i_1}…∂x_{i_m} · ∂_{B_1} x_{i_1} ⋯ ∂_{B_m} x_{i_m}

The partition of one block is linear in what it derives. So a weighted sum of derivatives, such as a
Laplacian, is derived as one: it needs itself of the arguments, and the proper parts of its terms. In d
dimensions that is d + 1 derivatives instead of 2 d.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from sympy import Add, Expr, Mul, Symbol

from ..errors import CompileError
from .derive import differentiate, in_output, pointwise_rule
from .kinks import has_jump
from .primitives import number
from .stable_forms import stable, transcendental

Index = tuple[int, ...]
"""The features along which is derived, in order: ``(0, 0, 1)`` for ``∂³/∂t_0²∂t_1``."""


@dataclass(frozen=True)
class Derivative:
    """``Σ_j weight_j ∂^{index_j}`` with respect to features by their numbers; sorted, equal terms added up.

    Raises :class:`~gncompile.errors.CompileError` where no term is left, or one has no feature.
    """

    terms: tuple[tuple[Index, float], ...]

    def __post_init__(self) -> None:
        total: dict[Index, float] = {}
        for index, weight in self.terms:
            key = tuple(sorted(index))
            total[key] = total.get(key, 0.0) + float(weight)
        terms = tuple((i, w) for i, w in sorted(total.items(), key=_rank) if w != 0)
        if not terms or not all(index for index, _ in terms):
            raise CompileError(
                f"{self.terms} is no derivative",
                instead="give each term the features it derives along, and a weight that is not 0",
            )
        object.__setattr__(self, "terms", terms)

    @classmethod
    def along(cls, *features: int) -> Derivative:
        """One partial derivative."""
        return cls(((features, 1.0),))

    @property
    def order(self) -> int:
        """The order of the highest term."""
        return max(len(index) for index, _ in self.terms)

    @property
    def lower(self) -> frozenset[Derivative]:
        """The partial derivatives that products of its terms are made of: all their proper parts."""
        return frozenset(
            Derivative.along(*(i for i, taken in zip(index, picks, strict=True) if taken))
            for index, _ in self.terms
            for picks in product((False, True), repeat=len(index))
            if any(picks) and not all(picks)
        )


def _rank(term: tuple[Index, float]) -> tuple[int, Index]:
    return len(term[0]), term[0]


def weighted(weight: float, e: Expr) -> Expr:
    """``weight · e`` with the exact number."""
    return number(weight) * e


def closed(wanted: Sequence[Derivative]) -> tuple[Derivative, ...]:
    """``wanted`` and all that their products are made of, lower orders first, each once."""
    every = dict.fromkeys(wanted)
    for each in wanted:
        every |= dict.fromkeys(each.lower)
    return tuple(sorted(every, key=lambda d: (d.order, len(d.terms), d.terms)))


def partitions(index: Index) -> Iterator[tuple[Index, ...]]:
    """The partitions of the places of an index into blocks, as what stands there; as often as they occur."""
    if not index:
        yield ()
        return
    first, rest = index[0], index[1:]
    for blocks in partitions(rest):
        yield ((first,), *blocks)
        for i, block in enumerate(blocks):
            yield (*blocks[:i], (first, *block), *blocks[i + 1 :])


Partial = Callable[[tuple[int, ...]], Expr]
"""``∂^m φ/∂x_{i_1}…∂x_{i_m}`` of sorted positions of arguments."""


def chain(
    derivative: Derivative, partial: Partial, inner: Sequence[Mapping[Derivative, Symbol]]
) -> Expr:
    """``derivative`` of φ, of those of its arguments that are not zero: the formula above."""
    factors: dict[tuple[int, ...], Expr] = {
        (i,): known[derivative] for i, known in enumerate(inner) if derivative in known
    }
    for index, weight in derivative.terms:
        for blocks in partitions(index):
            if len(blocks) == 1:
                continue
            parts = [Derivative.along(*block) for block in blocks]
            moving = [[i for i, known in enumerate(inner) if p in known] for p in parts]
            for chosen in product(*moving):
                each = Mul(*(inner[i][p] for i, p in zip(chosen, parts, strict=True)))
                key = tuple(sorted(chosen))
                factors[key] = factors.get(key, 0) + weighted(weight, each)
    return Add(*(partial(key) * factor for key, factor in factors.items() if factor != 0))


class Partials:
    """The partial derivatives of ``value`` in its ``arguments``, in stable forms, each made once.

    What the value itself tells is written in ``output``, the symbol of φ's own value (``tanh' = 1 - φ²``), as
    are the slopes that a backward pass keeps. What is more than a number times a symbol is called by one of
    its own, in ``named``, also in higher derivatives. ``crossed`` are those of a jump: its delta is left out.
    """

    def __init__(
        self, value: Expr, arguments: tuple[Symbol, ...], output: Symbol, label: str
    ) -> None:
        self._rule = pointwise_rule(value, arguments)
        self._output, self._label = output, label
        self._direct: dict[tuple[int, ...], Expr] = {
            (i,): slope for i, slope in enumerate(self._rule.slopes)
        }
        self._written: dict[tuple[int, ...], Expr] = {}
        self.named: dict[Symbol, Expr] = {}
        self.crossed: dict[tuple[int, ...], Expr] = {}

    def __call__(self, positions: tuple[int, ...]) -> Expr:
        if positions not in self._written:
            self._written[positions] = self._named(positions, self._in_output(positions))
        return self._written[positions]

    def _derived(self, positions: tuple[int, ...]) -> Expr:
        """In the arguments."""
        if positions not in self._direct:
            below, last = self._derived(positions[:-1]), self._rule.arguments[positions[-1]]
            if has_jump(below, last):
                self.crossed[positions] = below
            self._direct[positions] = stable(differentiate(below, last))
        return self._direct[positions]

    def _in_output(self, positions: tuple[int, ...]) -> Expr:
        """Where that spares functions, as for what a backward pass keeps."""
        derived, arguments = self._derived(positions), self._rule.arguments
        found = stable(in_output(derived, self._rule.value, self._output, arguments))
        fewer = len(transcendental(found)) < len(transcendental(derived))
        return found if fewer or not found.has(*arguments) else derived

    def _named(self, positions: tuple[int, ...], e: Expr) -> Expr:
        e = e.xreplace({known: symbol for symbol, known in self.named.items()})
        _, core = e.as_coeff_Mul()
        if core.is_Symbol or core.is_number:
            return e
        one = len(self._rule.arguments) == 1
        which = str(len(positions)) if one else "".join(map(str, positions))
        symbol = Symbol(f"{self._label}__d{which}", real=True)
        self.named[symbol] = e
        return symbol
