"""Operations of a step program on whole numbers: ``[N, P]`` of them, held as numbers of the program."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Indexed:
    """An operation whose input is whole numbers."""


@dataclass(frozen=True)
class Lookup(Indexed):
    """``W[i]``: rows of a table ``[V, d]`` at indices ``[N, P]``, ``[N, P, d]``; NaN for an index that is.

    0 for the index ``padding``.
    """

    padding: int | None = None


@dataclass(frozen=True)
class LookupGradient(Indexed):
    """``(1/N) Σ e_i gᵀ`` of indices ``[N, P]`` and vectors ``[N, P, d]``: ``[V, d]``; no ``padding`` row."""

    classes: int
    padding: int | None = None


@dataclass(frozen=True)
class Counts(Indexed):
    """How often each of the ``classes`` is met in a sample of ``[N, P]`` in the mean; 0 for ``padding``."""

    classes: int
    padding: int | None = None


@dataclass(frozen=True)
class OneHot(Indexed):
    """Rows with a one at the index: ``[N, P] → [N, P, classes]``."""

    classes: int
