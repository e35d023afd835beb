"""The operations of a step program. Grammar::

op ::= Leaf(kind, key)             input, target, parameter, constant, state or scalar, by name
    |  Affine()                    x Wᵀ + b
    |  MatMul(transpose_a, _b)     a b, leading dimensions broadcast
    |  Pointwise(expr, symbols)    elementwise with broadcasting; scalars are 0-d tensors
    |  Gather(index, fill)         features picked from the concatenated inputs
    |  Scatter(index, size, axis)  its adjoint for one input
    |  Moment(homogeneous)         E[a bᵀ] = (1/N) aᵀ b; with one input E[a aᵀ]
    |  PlaceMoments()              E[a bᵀ] of every place: [P, N, d], [P, N, e] -> [P, d, e]
    |  Mean() | Total() | RowSum() | Dot(mean)                                     reductions
    |  Multiply()                  M b for a structured M
    |  SymmetricProduct()          aᵀ b, known to be symmetric
    |  AddDiagonal() | Densify() | Trace() | PlusTranspose()
    |  Transpose() | AsMatrix(structure) | Part(which) | Element(index) | Share(rows)  views
    |  Unflatten(sizes, axis) | Flatten(count, axis) | Permute(order)                views
    |  Lookup(padding) | LookupGradient(classes) | Counts(classes) | OneHot(classes)          by whole numbers
    |  Interpolate(of)              a constant grid between its points: program/interpolation
    |  Repeat(shape) | PlaceBlocks(places, last) | PlaceDots(places)
    |  DiagonalMoment() | TakeDiagonal()
    |  Stack() | Zeros(spec) | Softmax() | LogSumExp() | SampleCategorical() | Random(kind) | Columns()
    |  SampleDiagonal() | SampleOuter() | ScaleSides()           per-sample matrices [N, d, d]
    |  SampleMatrix(size) | SampleRoot() | SampleMultiply()      read from rows, their roots, M_n v_n
    |  Decay(weight, bias)         ∇W̄ + [η_W W, η_b b]
    |  Average() | DampedInverse() | Eigen() | Precondition() | PreconditionEigen() | StepSizes(groups, …)
    |  Convolve(geometry) | Patches(geometry) | MaxPool(window) | …    on grids: program/convolutions
    |  Rows(..) | RowGram(..) | RootSolve(..) | RootRest() | DualSolve() | PrimalSolve()   program/exact
    |  AllReduce(over) | AllGather(rank, room, flops) | Reduced(start, spec) | CongruenceRows(first, count)
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import sympy

from . import collectives, exact, lookups
from .convolutions import GridOp
from .interpolation import Interpolate as Interpolate
from .specs import Dim, Spec
from .views import VIEWS as VIEWS
from .views import AsMatrix as AsMatrix
from .views import Element as Element
from .views import FeaturesLast as FeaturesLast
from .views import Flatten as Flatten
from .views import Part as Part
from .views import Permute as Permute
from .views import SampleMatrix as SampleMatrix
from .views import Share as Share
from .views import Transpose as Transpose
from .views import Unflatten as Unflatten

LeafKind = Literal["input", "target", "parameter", "constant", "state", "scalar"]


@dataclass(frozen=True)
class Leaf:
    """A tensor the runtime owns, by kind and name."""

    kind: LeafKind
    key: str


@dataclass(frozen=True)
class Affine:
    """``h = x Wᵀ + b`` (inputs x, W[, b]) or, for tangents, ``x Wᵀ + y Vᵀ + b`` (inputs x, W, y, V[, b])."""


@dataclass(frozen=True)
class MatMul:
    """``a b`` with either operand transposed in its last two dimensions; others broadcast."""

    transpose_a: bool = False
    transpose_b: bool = False


@dataclass(frozen=True)
class Pointwise:
    """``φ(inputs)`` elementwise; ``symbols[i]`` stands for input ``i``."""

    expression: sympy.Expr
    symbols: tuple[sympy.Symbol, ...]


@dataclass(frozen=True)
class Gather:
    """``y_j = [x_1|x_2|…]_{index_j}`` along the last dimension, ``fill`` where the index is -1."""

    index: tuple[int, ...]
    fill: float = 0.0


@dataclass(frozen=True)
class Scatter:
    """``x_i = Σ_{j: index_j = i} y_j`` along ``axis``: the adjoint of picking ``index`` from ``size``."""

    index: tuple[int, ...]
    size: int
    axis: int = -1


@dataclass(frozen=True)
class Moment:
    """``(1/N) Σ a bᵀ`` over samples, places and columns; ``homogeneous`` appends a 1 to b (to both if one
    input), or another ``coordinate``: 0 for a use of a layer without its bias."""

    homogeneous: bool = False
    coordinate: float = 1.0


@dataclass(frozen=True)
class PlaceMoments:
    """``(1/N) Σ_n a_n b_nᵀ`` of every place: ``[P, N, d], [P, N, e] → [P, d, e]``."""


@dataclass(frozen=True)
class Mean:
    """Mean over the first dimension, the samples; of a symmetric ``matrix`` a sample, symmetric."""

    matrix: bool = False


@dataclass(frozen=True)
class Total:
    """Sum of all elements, a scalar; ``mean`` divides by the first dimension."""

    mean: bool = False


@dataclass(frozen=True)
class RowSum:
    """Sum over the last dimension, kept as size 1."""


@dataclass(frozen=True)
class Dot:
    """``Σ a ⊙ b``, a scalar; ``mean`` divides by the first dimension."""

    mean: bool = False


@dataclass(frozen=True)
class Multiply:
    """``M b`` for a structured square M and a general b."""


@dataclass(frozen=True)
class SymmetricProduct:
    """``aᵀ b`` where the caller knows the result is symmetric (b = M a, M symmetric)."""


@dataclass(frozen=True)
class Hadamard:
    """``M ⊙ E`` for two matrices that are both stored in full."""


@dataclass(frozen=True)
class AddDiagonal:
    """``M + diag(d)`` for a full M and a stored scalar or vector d."""


@dataclass(frozen=True)
class Densify:
    """The full matrix behind a structured one."""


@dataclass(frozen=True)
class Trace:
    """Trace of a structured square matrix."""


@dataclass(frozen=True)
class PlusTranspose:
    """``A + Aᵀ``, symmetric."""


@dataclass(frozen=True)
class Repeat:
    """A number or row, repeated to this ``shape``."""

    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class DiagonalMoment:
    """``(1/N) Σ a ⊙ a`` over samples and columns: the diagonal of :class:`Moment`."""


@dataclass(frozen=True)
class TakeDiagonal:
    """The diagonal of a full symmetric M."""


@dataclass(frozen=True)
class PlaceBlocks:
    """``Σ_s M[s, s]`` of a square M over features at ``places``: ``[P·d, P·d] → [d, d]``; thin stays thin.

    Neighbours are features of a place, or ``last`` places of a feature. Symmetric weights w ``[P, P]`` as a
    second input: ``Σ_st w_st M[s, t]`` of a full M."""

    places: int
    last: bool = False


@dataclass(frozen=True)
class PlaceDots:
    """``w_st = ⟨M[s, t], V⟩`` of M ``[P·d, P·d]`` and V ``[d, d]``: ``[P, P]``, adjoint to PlaceBlocks."""

    places: int


@dataclass(frozen=True)
class Zeros:
    """Zeros of a given shape; ``number`` tells apart those that are overwritten later."""

    spec: Spec
    number: int = 0


@dataclass(frozen=True)
class Stack:
    """Scalars as the elements of a vector."""


@dataclass(frozen=True)
class Softmax:
    """Softmax over the last dimension."""


@dataclass(frozen=True)
class LogSumExp:
    """``log Σ_k exp z_k`` over the last dimension, kept as size 1."""


@dataclass(frozen=True)
class SampleCategorical:
    """One-hot samples from the rows of p, by inverting the distribution function at u ``[N, 1]``."""


@dataclass(frozen=True)
class Random:
    """Fresh random numbers for this step: standard normal, uniform on [0, 1), or signs ±1.

    In a phase equal draws are one; ``number`` tells apart those that are not to be. A ``joined`` one is this
    process's rows of a draw for the samples of all.
    """

    kind: Literal["normal", "uniform", "sign"]
    shape: tuple[Dim, ...]
    number: int = 0
    joined: bool = False


@dataclass(frozen=True)
class Columns:
    """Columns k = start … start + S − 1 of the square root of 𝓗_L: ``r_k (e_k − p)``, ``[S, N, K]``.

    Inputs r ``[N, K]`` and, optionally, p; or the roots C ``[N, K, K]`` themselves; or r and p at places,
    ``[N, P, K]``, where column ``k`` of place ``q`` is the one numbered ``q K + k``. The runtime gives
    ``start``; columns before ``first``, and beyond the last, are zero.
    """

    first: int = 0


@dataclass(frozen=True)
class SampleDiagonal:
    """``diag(d_n)`` for every sample: ``[N, d] → [N, d, d]``."""


@dataclass(frozen=True)
class SampleOuter:
    """``a_n b_nᵀ`` for every sample: ``[N, d], [N, e] → [N, d, e]``."""


@dataclass(frozen=True)
class SampleRoot:
    """``C_n`` with ``C_n C_nᵀ = M_n`` for symmetric M ``[N, d, d]``, its negative eigenvalues set to zero."""


@dataclass(frozen=True)
class SampleMultiply:
    """``M_n v_n`` for every sample: ``[N, d, e], [N, e] → [N, d]``."""


@dataclass(frozen=True)
class ScaleSides:
    """``diag(b_n) M_n diag(c_n)`` for every sample (inputs M[, b][, c]); a missing side is the identity."""

    left: bool
    right: bool


@dataclass(frozen=True)
class Decay:
    """``∇W̄ + [η_W W, η_b b]`` (inputs ∇W̄, W[, b])."""

    weight: float
    bias: float


@dataclass(frozen=True)
class Average:
    """``ε F + (1 − ε) F_batch`` (inputs F, F_batch, ε), in place of F."""


@dataclass(frozen=True)
class DampedInverse:
    """``(M + c I)⁻¹`` (inputs M, c), same structure as M; ``refined`` from the inverse it overwrites."""

    refined: bool = False


@dataclass(frozen=True)
class Eigen:
    """Eigenvalues above eigenvectors of a symmetric M, packed as ``[d+1, d]``; a diagonal M is kept."""


@dataclass(frozen=True)
class Precondition:
    """``−G⁻¹ ∇ Q⁻¹`` (inputs ∇, G⁻¹, Q⁻¹)."""


@dataclass(frozen=True)
class PreconditionEigen:
    """``−U_G ((U_Gᵀ ∇ U_Q) / (g qᵀ + κ)) U_Qᵀ`` (inputs ∇, eigen of G, eigen of Q, κ)."""


@dataclass(frozen=True)
class StepSizes:
    """Coefficients c of directions that minimise ``bᵀc + ½cᵀMc``, and what follows from them.

    Inputs: the upper triangle of M row by row, then b, the usual length (0: none is known), and optionally
    the momentum's largest coefficient, else 1. The squared length of a step is the greater of ``cᵀMc`` and
    ``-bᵀc``, which are equal where nothing bounds c. Layer ``l`` belongs to direction ``groups[l]``; with
    ``momentum`` the last direction is the previous step. Bounds: the momentum's coefficient lies between 0
    and the largest, the others in ``[-cap, cap]`` if there is a cap, and with ``growth`` the whole step is
    shortened where its squared length exceeds so many times the usual, in proportion to it, so that
    ``-bᵀc`` becomes usual too: where M misses the samples that have made the gradient large, no bound on
    ``cᵀMc`` is enough.

    The result holds each layer's coefficient, then the squared length, the momentum's coefficient (0
    without), the predicted change ``bᵀc + ½cᵀMc``, and the effective step size ``Σ c_i b_i / Σ b_i``
    without momentum, 0 where there is no slope.
    """

    groups: tuple[int, ...]
    momentum: bool
    growth: float | None = None
    cap: float | None = None

    @property
    def count(self) -> int:
        """Number of directions."""
        return max(self.groups) + 1 + int(self.momentum)


Op = (
    Leaf | Affine | MatMul | Pointwise | Gather | Scatter | Moment | PlaceMoments | Mean | Total | RowSum
    | Dot | Multiply | SymmetricProduct | Hadamard | AddDiagonal | Densify | Trace | PlusTranspose
    | Repeat | DiagonalMoment | TakeDiagonal | PlaceBlocks | PlaceDots | Transpose
    | AsMatrix | Part | Element | Share | Unflatten | Flatten | Permute | Stack | Zeros | Softmax
    | LogSumExp | SampleCategorical | Random | Columns | SampleDiagonal | SampleOuter | SampleMatrix
    | SampleRoot | SampleMultiply | ScaleSides | Decay | Average | DampedInverse
    | lookups.Lookup | lookups.LookupGradient | lookups.Counts | lookups.OneHot
    | Eigen | Precondition | PreconditionEigen | StepSizes
    | exact.Rows | exact.RowGram | exact.RowSquares | exact.Joined | exact.RootSolve | exact.RootRest
    | exact.DualSolve | exact.PrimalSolve | GridOp | FeaturesLast | Interpolate
    | collectives.AllReduce | collectives.AllGather | collectives.Reduced | collectives.CongruenceRows
)  # fmt: skip


def describe(op: Op) -> str:
    """The operation with its attributes in a few characters."""
    if isinstance(op, Leaf):
        return f"{op.kind} {op.key}"
    if isinstance(op, Pointwise):
        return f"φ[{op.expression}]"
    if isinstance(op, Gather | Scatter):
        return f"{type(op).__name__}[{len(op.index)}]"
    values = [getattr(op, f.name) for f in fields(op) if getattr(op, f.name) != f.default]
    shown = ", ".join(str(v) for v in values if v not in (False, None))
    return type(op).__name__ + (f"[{shown}]" if shown else "")
