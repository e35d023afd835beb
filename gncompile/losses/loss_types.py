"""Losses as mathematics: value, gradient, output Hessian, its square root, and a sampler.

The objective is ``Ē = (1/N) Σ_n E_n`` over a batch of ``N`` samples with ``K`` outputs each. Three
kinds of per-sample loss ``E_n(z_n, y_n)`` are known, all convex in the network output ``z``::

    SeparableLoss        E_n = c Σ_j e(z_j, y_j)                    𝓗 = c diag e''
    SoftmaxCrossEntropy  E_n = -c Σ_k ŷ_k log softmax(z)_k          𝓗 = c m (diag p - p pᵀ)
    CoupledLoss          E_n = c e(z_1, …, z_K, y_1, …, y_T)        𝓗 = c ∂²e/∂z², K small

``c`` is the :class:`Scale`, part of the declaration. A separable loss is one sympy expression in
:data:`OUTPUT` and :data:`TARGET`; its slope, curvature and the verdict on its convexity are
derived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import sympy

from ..errors import LossError
from ..functions.convexity import Convexity, convexity, is_nonnegative
from ..functions.primitives import select, sigmoid
from .coupled_loss import CoupledLoss
from .loss_scale import PER_SAMPLE, Scale

if TYPE_CHECKING:
    import torch

OUTPUT = sympy.Symbol("z", real=True)
TARGET = sympy.Symbol("y", real=True)
NOISE = sympy.Symbol("noise", real=True)

Sampler = Literal["normal", "bernoulli"]
Noise = Literal["normal", "uniform", "sign"]


@dataclass(frozen=True)
class SeparableLoss:
    """``E_n = c Σ_j e(z_j, y_j)``, ``e`` an ``expression`` in :data:`OUTPUT` and :data:`TARGET`.

    The properties below are those of ``e``: multiply ``slope`` and ``curvature`` by ``c``, and
    ``root`` and ``sampled_slope`` by ``√c``. ``slope_form`` and ``curvature_form`` replace sympy's
    derivatives by equal forms that lose fewer digits. ``targets`` bounds the targets for which
    ``e`` is declared convex.
    """

    name: str
    expression: sympy.Expr
    sampler: Sampler | None = None
    scale: Scale = PER_SAMPLE
    slope_form: sympy.Expr | None = field(default=None, repr=False)
    curvature_form: sympy.Expr | None = field(default=None, repr=False)
    targets: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self) -> None:
        others = self.expression.free_symbols - {OUTPUT, TARGET}
        if others:
            names = ", ".join(sorted(str(symbol) for symbol in others))
            raise LossError(
                f"the loss {self.name!r} uses {names} besides the output z and the target y",
                where=f"e(z, y) = {self.expression}",
                instead="use gncompile.losses.OUTPUT and TARGET, and numbers for other values",
            )
        if self.sampler:
            _check_sampler(self)

    @cached_property
    def slope(self) -> sympy.Expr:
        """``e' = ∂e/∂z``."""
        return self.slope_form if self.slope_form is not None else _diff(self.expression)

    @cached_property
    def curvature(self) -> sympy.Expr:
        """``e'' = ∂²e/∂z²``, the diagonal of the output Hessian; 0 at a kink."""
        if self.curvature_form is not None:
            return self.curvature_form
        return _provable(_diff(self.slope))

    @cached_property
    def root(self) -> sympy.Expr:
        """``√e''``, the diagonal of a square root ``C`` of the output Hessian, ``C Cᵀ = 𝓗``."""
        return _root(self.curvature)

    @property
    def noise(self) -> Noise:
        """What :data:`NOISE` stands for in ``sampled_slope``: N(0, 1), uniform on [0, 1), or ±1."""
        kinds: dict[Sampler | None, Noise] = {
            "normal": "normal",
            "bernoulli": "uniform",
            None: "sign",
        }
        return kinds[self.sampler]

    @cached_property
    def sampled_slope(self) -> sympy.Expr:
        """``g̃`` with ``E[g̃²] = e''``, in :data:`OUTPUT` and :data:`NOISE` (KFAC).

        With a sampler ``g̃ = e'(z, ỹ)``, ``ỹ`` drawn from the loss's own model; without one the ±1
        projection ``g̃ = √e'' · noise``, which needs no model and may contain :data:`TARGET`.
        """
        if self.sampler is None:
            return self.projected_slope
        return sympy.expand(self.slope.subs(TARGET, _sampled_target(self)))

    @property
    def projected_slope(self) -> sympy.Expr:
        """``√e'' · noise`` with ``noise = ±1`` (KFAC-RP); for every convex loss."""
        return self.root * NOISE

    @cached_property
    def convexity(self) -> Convexity:
        """The verdict on ``e'' ≥ 0`` over all outputs and the declared targets."""
        return convexity(self.expression, OUTPUT, TARGET, self.slope, self.curvature, self.targets)

    def check_output(self, shape: tuple[int, ...]) -> None:
        """Any per-sample output ``shape`` will do."""

    def check_target(
        self, z_shape: tuple[int, ...], z_dtype: torch.dtype, target: torch.Tensor
    ) -> None:
        """Raise :class:`BatchError` unless ``target`` has the output's shape and dtype."""
        from .targets import check_elementwise_target

        check_elementwise_target(self.name, z_shape, z_dtype, target, self.targets)

    def describe(self) -> str:
        """One line: value, gradient, output Hessian, scale."""
        return (
            f"{self.name}: e = {self.expression}, e' = {self.slope}, 𝓗 = c diag({self.curvature}), "
            f"{self.scale}"
        )


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """``E_n = -c Σ_k ŷ_k log p_k`` with ``p = softmax(z)`` and ``ŷ = (1-ε) y + ε/K``.

    ``y`` is a class index (its one-hot row) or a row of soft targets. As in torch such a row need
    not sum to one: with the mass ``m = Σ_k ŷ_k``, which is 1 for indices and for probabilities,

        g = m p - ŷ,   𝓗 = m (diag p - p pᵀ),   C = √m (diag √p - p √pᵀ),   C Cᵀ = 𝓗,
        g̃ = √m (p - onehot(ỹ)),  ỹ ~ Categorical(p),   E[g̃ g̃ᵀ] = 𝓗

    multiplied by ``c`` (``g``, ``𝓗``) or ``√c`` (``C``, ``g̃``). ``ε`` is ``label_smoothing``.
    """

    name: str = "cross_entropy"
    label_smoothing: float = 0.0
    scale: Scale = PER_SAMPLE

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing <= 1:
            raise LossError(f"label_smoothing must lie between 0 and 1, got {self.label_smoothing}")
        if self.scale.over == "elements":
            raise LossError(
                "a softmax cross-entropy cannot be averaged over its classes",
                instead='use Scale(over="samples") or Scale(over="sum")',
            )

    def target_mass(self, total: torch.Tensor) -> torch.Tensor:
        """``m = (1-ε) Σ_k y_k + ε`` from the row sums ``total`` of soft targets."""
        return (1 - self.label_smoothing) * total + self.label_smoothing

    def check_output(self, shape: tuple[int, ...]) -> None:
        """Raise :class:`LossError` unless the per-sample output is a row of two or more logits."""
        if len(shape) == 1 and shape[0] >= 2:
            return
        batch = ", ".join(["N", *map(str, shape)])
        raise LossError(
            f"{self.name!r} needs a network output [N, K] with K ≥ 2 classes, got [{batch}]",
            where="the model's output",
            instead="use 'bce_with_logits' for one logit"
            if shape == (1,)
            else "return one row of logits a sample; per-pixel classes are not supported",
        )

    def check_target(
        self, z_shape: tuple[int, ...], z_dtype: torch.dtype, target: torch.Tensor
    ) -> None:
        """Raise :class:`BatchError` unless ``target`` has int64 indices [N] or soft rows [N, K]."""
        from .targets import check_class_target

        self.check_output(z_shape[1:])
        check_class_target(self.name, z_shape, z_dtype, target)

    def describe(self) -> str:
        """One line: value, gradient, output Hessian, scale."""
        smooth = f", ŷ = (1 - {self.label_smoothing:g}) y + {self.label_smoothing:g}/K"
        target = "ŷ" if self.label_smoothing else "y"
        return (
            f"{self.name}: E = -c Σ {target} log softmax(z), g = c (p - {target}), "
            f"𝓗 = c (diag p - p pᵀ){smooth if self.label_smoothing else ''}, {self.scale}"
        )


Loss = SeparableLoss | SoftmaxCrossEntropy | CoupledLoss

_SIMPLIFIED_OPERATIONS = 60


def _diff(expression: sympy.Expr) -> sympy.Expr:
    """``∂/∂z`` almost everywhere: the jump of ``sign`` at a kink carries no curvature."""
    slope = sympy.diff(expression, OUTPUT)
    return slope.replace(sympy.DiracDelta, lambda *_: sympy.Integer(0))


def _provable(curvature: sympy.Expr) -> sympy.Expr:
    """The curvature as derived, unless only its simplified form is visibly non-negative."""
    if is_nonnegative(curvature) or curvature.count_ops() > _SIMPLIFIED_OPERATIONS:
        return curvature
    expanded = sympy.expand(curvature)  # y σ'(z) + (1 - y) σ'(z) is σ'(z)
    if is_nonnegative(expanded):
        return expanded
    distance = sympy.Dummy("d", real=True)
    shift = TARGET + distance if TARGET in curvature.free_symbols else distance
    single = curvature.subs(OUTPUT, shift)
    if TARGET in single.free_symbols or single.count_ops() > _SIMPLIFIED_OPERATIONS:
        return curvature
    back = OUTPUT - TARGET if TARGET in curvature.free_symbols else OUTPUT
    simpler = _over_one_power(single).subs(distance, back)
    return simpler if is_nonnegative(simpler) else curvature


def _over_one_power(e: sympy.Expr) -> sympy.Expr:
    """``(1 + d²)^(-1/2) - d² (1 + d²)^(-3/2)`` as ``(1 + d²)^(-3/2)``."""
    terms = [dict(f.as_base_exp() for f in sympy.Mul.make_args(t)) for t in sympy.Add.make_args(e)]
    bases = {b for t in terms for b, power in t.items() if b.is_Add and power.is_negative}
    for base in sorted(bases, key=sympy.default_sort_key):
        least = min(t.get(base, sympy.Integer(0)) for t in terms)
        if all((t.get(base, 0) - least).is_Integer for t in terms):
            # Term by term: expand() itself would take (1 + d²)^(3/2) apart.
            raised = (term * base**-least for term in sympy.Add.make_args(e))
            return sympy.expand(sympy.Add(*raised)) * base**least
    return e


def _root(curvature: sympy.Expr) -> sympy.Expr:
    """``√curvature``, branch by branch; guarded where rounding could make the argument negative."""
    if isinstance(curvature, select):
        condition, above, below = curvature.args
        return select(condition, _root(above), _root(below))
    if is_nonnegative(curvature):
        return sympy.sqrt(curvature)
    return select(curvature, sympy.sqrt(curvature), sympy.Integer(0))


def _sampled_target(loss: SeparableLoss) -> sympy.Expr:
    """``ỹ ~ p(y | z) ∝ exp(-e)``: Gaussian of variance 1/e'', or 1 with probability σ(z)."""
    if loss.sampler == "normal":
        return OUTPUT + NOISE / loss.root
    return select(sigmoid(OUTPUT) - NOISE, sympy.Integer(1), sympy.Integer(0))


def _check_sampler(loss: SeparableLoss) -> None:
    """A sampler must belong to the loss, else ``E[g̃ g̃ᵀ] = 𝓗`` fails silently."""
    if loss.sampler == "normal":
        centred = sympy.expand(loss.slope - loss.curvature * (OUTPUT - TARGET)) == 0
        fits, needs = (
            centred and loss.curvature.is_positive and loss.curvature.is_number,
            "a (z - y)²/2",
        )
    else:
        fits, needs = sympy.expand(loss.slope - sigmoid(OUTPUT) + TARGET) == 0, "softplus(z) - y z"
    if not fits:
        raise LossError(
            f"the sampler {loss.sampler!r} belongs to {needs} up to a term in y, "
            f"not to the loss {loss.name!r}",
            where=f"e(z, y) = {loss.expression}",
            instead="leave the sampler out; KFAC then uses ±1 projections",
        )
