"""The vocabulary of losses: built-in names, registration, and :func:`resolve_loss`.

A *name* (``"mse"``) means the convention of the literature, summed over outputs and averaged over
samples; a ``torch.nn`` loss module means exactly what torch computes, reduction included. What a
loss *is* stands in :mod:`gncompile.loss_types`, whose names are repeated here.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from typing import TYPE_CHECKING

import sympy

from .convexity import unstable_point
from .errors import LossError, RegistrationError, message, nearest
from .functions import number, select, sigmoid, softplus
from .loss_types import (
    NOISE,
    OUTPUT,
    TARGET,
    Loss,
    Sampler,
    Scale,
    SeparableLoss,
    SoftmaxCrossEntropy,
)
from .parsing import parse_expression

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "NOISE",
    "OUTPUT",
    "TARGET",
    "Loss",
    "Scale",
    "SeparableLoss",
    "SoftmaxCrossEntropy",
    "loss_names",
    "register_loss",
    "resolve_loss",
]


def _named(name: str) -> Loss:
    """The built-in and registered losses' declarations, by name."""
    known = {**_BUILTIN, **{key: loss for key, (loss, _) in _registered.items()}}
    if name in known:
        return known[name]
    raise LossError(
        message(
            f"unknown loss {name!r}. {nearest(name, known)}".rstrip(),
            instead=f"use one of {', '.join(sorted(known))}; an expression in z and y such as "
            "'exp(z) - y*z'; a torch.nn loss; or gncompile.register_loss",
        )
    )


def half_squared_error() -> sympy.Expr:
    """``½ (z - y)²``."""
    return (OUTPUT - TARGET) ** 2 / 2


def bernoulli_nll() -> sympy.Expr:
    """``-log Bernoulli(y; σ(z)) = softplus(z) - y z``."""
    return softplus(OUTPUT) - TARGET * OUTPUT


def poisson_nll() -> sympy.Expr:
    """``-log Poisson(y; e^z) = e^z - y z`` up to a term in ``y``."""
    return sympy.exp(OUTPUT) - TARGET * OUTPUT


def soft_margin() -> sympy.Expr:
    """``log(1 + e^(-y z))`` for targets ±1."""
    return softplus(-TARGET * OUTPUT)


def huber(delta: float = 1.0) -> sympy.Expr:
    """``½ d²`` where ``|d| < δ``, else ``δ (|d| - ½ δ)``, with ``d = z - y``."""
    distance, threshold = sympy.Abs(OUTPUT - TARGET), number(delta)
    linear = threshold * (distance - threshold / 2)
    return select(threshold - distance, half_squared_error(), linear)


def smooth_l1(beta: float = 1.0) -> sympy.Expr:
    """``d²/(2β)`` where ``|d| < β``, else ``|d| - ½ β``."""
    distance, threshold = sympy.Abs(OUTPUT - TARGET), number(beta)
    return select(threshold - distance, half_squared_error() / threshold, distance - threshold / 2)


def log_cosh(distance: sympy.Expr) -> sympy.Expr:
    """``log cosh d = softplus(2d) - d - log 2``."""
    return softplus(2 * distance) - distance - sympy.log(2)


def _log_cosh_loss() -> SeparableLoss:
    """``tanh d`` keeps the digits that ``2 σ(2d) - 1`` loses near zero."""
    distance = OUTPUT - TARGET
    curvature = 4 * sigmoid(2 * distance) * sigmoid(-2 * distance)
    return SeparableLoss(
        "log_cosh",
        log_cosh(distance),
        slope_form=sympy.tanh(distance),
        curvature_form=curvature,
    )


_BUILTIN: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        SeparableLoss("mse", half_squared_error(), sampler="normal"),
        SeparableLoss("bce_with_logits", bernoulli_nll(), sampler="bernoulli"),
        SoftmaxCrossEntropy("cross_entropy"),
        SeparableLoss("huber", huber()),
        SeparableLoss("smooth_l1", smooth_l1()),
        SeparableLoss("poisson_nll", poisson_nll()),
        _log_cosh_loss(),
        SeparableLoss("soft_margin", soft_margin()),
    )
}
_registered: dict[str, tuple[Loss, str]] = {}


def loss_names() -> list[str]:
    """Every known loss name, sorted."""
    return sorted({*_BUILTIN, *_registered})


def register_loss(
    name: str,
    expression: str | sympy.Expr,
    *,
    sampler: Sampler | None = None,
    targets: tuple[float, float] = (-math.inf, math.inf),
    override: bool = False,
) -> SeparableLoss:
    """Declare the separable loss ``E_n = Σ_j e(z_j, y_j)`` under ``name``, averaged over samples.

    ``expression`` is text or sympy in ``z`` and ``y``, convex in ``z`` for every target in
    ``targets``. Raises :class:`RegistrationError` if the name is taken (``override=True`` replaces
    it), :class:`ExpressionError` for bad text, and :class:`LossError` if the expression is not
    convex.

        register_loss("weibull", "exp(z) - y*z", targets=(0, inf))
    """
    if not name.isidentifier() or name in {"z", "y"}:
        raise RegistrationError(
            message(
                f"{name!r} cannot name a loss", instead="use letters, digits and _, not 'z' or 'y'"
            )
        )
    if not override and name in loss_names():
        first = _registered[name][1] if name in _registered else "gncompile/losses.py (built in)"
        raise RegistrationError(
            message(
                f"a loss named {name!r} is already registered",
                where=f"first registration: {first}",
                instead="choose another name, or pass override=True to replace it",
            )
        )
    loss = SeparableLoss(name, _expression(expression), sampler=sampler, targets=targets)
    _require_convex(loss)
    caller = inspect.stack(context=0)[1]
    _registered[name] = (loss, f"{caller.filename}:{caller.lineno}")
    return loss


def resolve_loss(spec: str | sympy.Expr | Loss | nn.Module) -> Loss:
    """The :class:`Loss` meant by a name, an expression in ``z`` and ``y``, or a torch.nn loss.

    Raises :class:`LossError` for an unknown name, an unsupported module or one that has no
    Gauss-Newton matrix, and a loss that is not convex in ``z``; :class:`ExpressionError` for
    malformed or unsafe text.
    """
    loss = _resolved(spec)
    if isinstance(loss, SeparableLoss):
        _require_convex(loss)
    return loss


def _resolved(spec: object) -> Loss:
    if isinstance(spec, SeparableLoss | SoftmaxCrossEntropy):
        return spec
    if isinstance(spec, str) and spec.isidentifier() and spec not in {"z", "y"}:
        return _named(spec)
    if isinstance(spec, str | sympy.Expr):
        return SeparableLoss(textwrap.shorten(str(spec), 60, placeholder=" …"), _expression(spec))
    from .losses_torch import loss_from_module

    return loss_from_module(spec)


def _expression(spec: str | sympy.Expr) -> sympy.Expr:
    """Text or sympy as an expression in this module's symbols, matched by name."""
    symbols = {"z": OUTPUT, "y": TARGET}
    if isinstance(spec, str):
        return _stable(parse_expression(spec, symbols, where="the loss"))
    return _stable(
        spec.xreplace({s: symbols[s.name] for s in spec.free_symbols if s.name in symbols})
    )


def _stable(expression: sympy.Expr) -> sympy.Expr:
    """``log(1 + e^u)`` and ``log cosh u``, which overflow as written, in terms of softplus."""
    u = sympy.Wild("u")
    expression = expression.replace(sympy.log(1 + sympy.exp(u)), softplus(u))
    return expression.replace(sympy.log(sympy.cosh(u)), log_cosh(u))


def _require_convex(loss: SeparableLoss) -> None:
    where = f"e(z, y) = {loss.expression}"
    if loss.curvature == 0:
        raise LossError(
            message(
                f"the loss {loss.name!r} has zero curvature everywhere: its output Hessian is 0 "
                "and a Gauss-Newton method has nothing to use",
                where=where,
                instead="use a smooth relative such as 'huber', 'smooth_l1' or 'log_cosh'",
            )
        )
    found = loss.convexity
    if found.verdict == "not convex":
        raise LossError(
            message(
                f"the loss {loss.name!r} is not convex in the output z: {found.reason}",
                where=where,
                instead="use a loss with e'' ≥ 0; if it is convex for the targets you have, "
                "declare them: gncompile.register_loss(name, expression, targets=(low, high))",
            )
        )
    point = unstable_point((loss.slope, loss.curvature), OUTPUT, TARGET, loss.targets)
    if point:
        raise LossError(
            message(
                f"the loss {loss.name!r} overflows where its value is finite: {point}",
                where=where,
                instead="write it with softplus, sigmoid, tanh or log1p, which do not overflow",
            )
        )
