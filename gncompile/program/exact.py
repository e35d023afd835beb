"""Operations of a step program on the Jacobian's rows: one for each sample and column of the root of 𝓗_L.

A use of a weight has two *sides* at its T places: ``l: [S, N, T, a]`` and ``r: [N, T, b]``, the columns c and
what the weight meets; a use that is reversed within its layer has the columns on its right. The row of
column k and sample n is ``J_kn = Σ_s l_s r_sᵀ`` with as many numbers as the weight.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class JacobianOp:
    """An operation that the runtime's module ``jacobian_rows`` computes."""


@dataclass(frozen=True)
class Rows(JacobianOp):
    """``J_kn = Σ_s l_s [r_s, c]ᵀ`` as rows ``[S, N, a (b + 1)]`` (inputs l, r), as W̄ lies row by row.

    The homogeneous ``coordinate`` c is appended where ``homogeneous``.
    """

    homogeneous: bool = False
    coordinate: float = 1.0


@dataclass(frozen=True)
class RowGram(JacobianOp):
    """``K + (1/N) J w Jᵀ`` of one parameter, ``[S, N, S, N]``, from the sides of its uses; J is not formed.

    For one weight w ``J Jᵀ = Σ_uses Σ_st (l_s l_tᵀ) ⊙ (r_s r_tᵀ)``, or ``(Σ_s l_s)(Σ_t l_t)ᵀ`` of a ``bias``,
    whose uses have no right side; with w ``[a, b]``, or ``[a]``, a few features' rows are made at a time.
    Inputs: w, the sides of every use, and K if it ``adds`` to one.
    """

    bias: bool = False
    adds: bool = False


@dataclass(frozen=True)
class RowSquares(JacobianOp):
    """``(1/N) Σ_kn J_kn²`` of a layer as W̄ lies, ``[a, b]`` or with the bias ``[a, b + 1]``: diag(G).

    ``coordinates`` are the homogeneous ones of the uses, if the layer has a bias. Inputs: the sides of every
    use, of a ``vector`` left ones only.
    """

    vector: bool = False
    coordinates: tuple[float, ...] = ()


@dataclass(frozen=True)
class Joined(JacobianOp):
    """The elements of matrices W̄, row by row and one after the other: ``[P]``."""


@dataclass(frozen=True)
class RootSolve(JacobianOp):
    """The least r with ``Σ_k C_k r_k = g`` for every sample, as far as there is one: ``[S, N, 1]``.

    Inputs: all columns C ``[S, N, K]`` and g ``[N, K]``; ``diagonal`` if C is, for every sample.
    """

    diagonal: bool = False


@dataclass(frozen=True)
class RootRest(JacobianOp):
    """``g − Σ_k C_k r_k`` (inputs C, g, r), 0 for samples of which no more than rounding is left."""


@dataclass(frozen=True)
class DualSolve(JacobianOp):
    """``(K + κ I)⁻¹ r`` for K ``[S, N, S, N]`` (inputs K, κ, r); where K is 0 but for rounding, so is it."""


@dataclass(frozen=True)
class PrimalSolve(JacobianOp):
    """``−(G + κ D)⁻¹ ∇`` for G ``[P, P]`` (inputs G, κ, ∇), without what is rounding both of G and of ∇.

    D is 1 or, in the order of G, a fourth input.
    """
