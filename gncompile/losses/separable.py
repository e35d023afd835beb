"""A loss summed over outputs, one sympy expression in the output and the target."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import sympy

from ..errors import LossError
from ..functions.convexity import Convexity, convexity, is_nonnegative
from ..functions.primitives import number, select, sigmoid
from ..functions.stable_forms import stable
from .loss_scale import PER_SAMPLE, Scale
from .per_output import PerOutput
from .targets import check_elementwise_target, element_weights, rows_of, taken_apart, within

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

    ``e`` may have more symbols, numbers at every output: ``constants`` of the loss, and what a batch brings
    beside the target (``extras``, positive). ``weights`` multiply ``e``, and with ``weighted`` so do those
    that come last in a batch's target ``(y, …, w)``.
    """

    name: str
    expression: sympy.Expr
    sampler: Sampler | None = None
    scale: Scale = PER_SAMPLE
    slope_form: sympy.Expr | None = field(default=None, repr=False)
    curvature_form: sympy.Expr | None = field(default=None, repr=False)
    targets: tuple[float, float] = (-math.inf, math.inf)
    weights: PerOutput | None = None
    constants: tuple[tuple[str, PerOutput], ...] = ()
    extras: tuple[str, ...] = ()
    weighted: bool = False

    def __post_init__(self) -> None:
        others = self.expression.free_symbols - {OUTPUT, TARGET, *self.parameters}
        if others:
            names = ", ".join(sorted(str(symbol) for symbol in others))
            raise LossError(
                f"the loss {self.name!r} uses {names} besides the output z and the target y",
                where=f"e(z, y) = {self.expression}",
                instead="use gncompile.losses.OUTPUT and TARGET, and numbers for other values",
            )
        if self.sampler:
            _check_sampler(self)

    @property
    def parameters(self) -> dict[sympy.Symbol, tuple[float, ...]]:
        """The symbols of ``e`` besides z and y, and values at which it is looked at."""
        values: dict[str, tuple[float, ...]] = {
            name: (min(each.values), max(each.values)) for name, each in self.constants
        }
        values |= dict.fromkeys(self.extras, EXAMPLES)
        return {sympy.Symbol(name, positive=True): found for name, found in values.items()}

    @property
    def instances(self) -> list[SeparableLoss]:
        """The loss at those values, as losses in z and y alone."""
        if not self.parameters:
            return [self]
        table = [
            dict(zip(self.parameters, map(number, values), strict=True))
            for values in itertools.product(*self.parameters.values())
        ]
        return [
            SeparableLoss(self.name, stable(self.expression.subs(values)), targets=self.targets)
            for values in table
        ]

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
        found = [
            convexity(e.expression, OUTPUT, TARGET, e.slope, e.curvature, e.targets)
            for e in self.instances
        ]
        worst = ("not convex", "unproved", "convex")
        return min(found, key=lambda each: worst.index(each.verdict))

    @property
    def structured(self) -> bool:
        """Whether a batch's target is a tuple, ``(y, …)``."""
        return self.weighted or bool(self.extras)

    def bound(self, shape: tuple[int, ...]) -> SeparableLoss:
        """The loss of outputs of this per-sample ``shape``; any will do that the weights fit."""
        self.check_output(shape)
        return replace(
            self,
            weights=self.weights and self.weights.broadcast(shape, f"the weight of {self.name}"),
            constants=tuple(
                (name, each.broadcast(shape, f"the {name} of {self.name}"))
                for name, each in self.constants
            ),
        )

    def check_output(self, shape: tuple[int, ...]) -> None:
        """Any per-sample output ``shape`` will do."""

    def layout(self, outputs: int) -> dict[str, int]:
        """The columns of a target's row: one an output of target, extras and weights; the d of the scale."""
        names = ("y", *self.extras, *(("weight",) if self.weighted else ()))
        return dict.fromkeys(names, outputs) | ({"divisor": 1} if self.scale.of_batch else {})

    def _apart(self, target: Any) -> tuple[torch.Tensor, ...]:
        """Target, extras and weights."""
        return taken_apart(
            self.name, target, ("y", *self.extras, *(("w",) if self.weighted else ()))
        )

    def check_target(self, z_shape: tuple[int, ...], z_dtype: torch.dtype, target: Any) -> None:
        """Raise :class:`BatchError` unless ``target`` has the output's shape and dtype."""
        y, *others = self._apart(target)
        if self.weighted:
            unused = element_weights(self.name, z_shape, z_dtype, others.pop()) == 0
            y, *others = self._shown((y, *others), unused)
        check_elementwise_target(self.name, z_shape, z_dtype, y, self.targets)
        for name, extra in zip(self.extras, others, strict=True):
            check_elementwise_target(f"{self.name}, {name}", z_shape, z_dtype, extra, POSITIVE)

    def _shown(self, given: tuple[torch.Tensor, ...], unused: torch.Tensor) -> list[torch.Tensor]:
        """Target and extras, with numbers that the loss accepts in place of those whose weight is zero."""
        harmless = min(max(0.0, self.targets[0]), self.targets[1]), *[1.0] * len(self.extras)
        return [
            each.masked_fill(unused, number) if each.shape == unused.shape else each
            for each, number in zip(given, harmless, strict=True)
        ]

    def rows(self, target: Any, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """The target as rows, see :meth:`layout`; what the weight 0 hides is replaced by a number."""
        y, *others = self._apart(target)
        z_shape = (len(y), *shape)
        bounds = [self.targets, *[POSITIVE] * len(self.extras)]
        if not self.weighted:
            return rows_of(map(within, (y, *others), bounds), dtype)
        weights = element_weights(self.name, z_shape, dtype, others.pop())
        used = map(within, self._shown((y, *others), weights == 0), bounds)
        divisor = weights.flatten(1).sum(dim=1)
        if self.scale.over == "sample weights":
            divisor = divisor / weights[0].numel()
        return rows_of([*used, weights, *self.scale.of_batch * [divisor]], dtype)

    def describe(self) -> str:
        """One line: value, gradient, output Hessian, scale."""
        facts = [f"{self.name}: e = {self.expression}, e' = {self.slope}"]
        facts += [f"𝓗 = c diag({self.curvature}), {self.scale}"]
        facts += [f"{name} = {_shortly(each)}" for name, each in self.constants]
        facts += [f"weights {_shortly(self.weights)}"] if self.weights else []
        facts += ["times the weights of the batch"] if self.weighted else []
        return ", ".join(facts)


EXAMPLES = (0.25, 1.0, 4.0)
"""Values at which a loss with extras is looked at."""

POSITIVE = (5e-324, math.inf)
"""The bounds of what may be no target, but a variance."""


def _shortly(each: PerOutput) -> str:
    values = sorted(set(each.values))
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} … {values[-1]:g}"


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
