"""The vocabulary of losses: built-in names, registration, and :func:`resolve_loss`.

A *name* (``"mse"``) means the convention of the literature, summed over outputs and averaged over
samples; a ``torch.nn`` loss module means exactly what torch computes, reduction included. What a
loss *is* stands in :mod:`gncompile.losses.loss_types`, whose names are repeated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

import sympy
import torch

from ..base.plugins import LOSSES, load_plugins
from ..errors import LossError, RegistrationError, nearest
from ..functions.convexity import unstable_point
from ..functions.declarations import (
    Written,
    caller,
    check_expression,
    check_interval,
    check_name,
    check_size,
    over_symbols,
    shortened,
    without_piecewise,
)
from ..functions.parsing import parse_expression
from ..functions.primitives import number, sigmoid
from .coupled_loss import (
    MAX_OUTPUTS,
    CoupledLoss,
    NegativeCurvature,
    check_derivatives,
    coupled_loss,
    output_symbols,
    target_symbols,
)
from .formulas import (
    bernoulli_nll,
    half_squared_error,
    huber,
    log_cosh,
    poisson_nll,
    smooth_l1,
    soft_margin,
)
from .loss_forms import stable_loss
from .loss_scale import Scale
from .loss_types import (
    NOISE,
    OUTPUT,
    TARGET,
    Loss,
    Sampler,
    SeparableLoss,
    SoftmaxCrossEntropy,
)
from .sum_loss import SumLoss, summed

__all__ = [
    "NOISE",
    "OUTPUT",
    "TARGET",
    "CoupledLoss",
    "Loss",
    "Scale",
    "SeparableLoss",
    "SoftmaxCrossEntropy",
    "SumLoss",
    "loss_function",
    "loss_names",
    "register_loss",
    "resolve_loss",
]


def _named(name: str) -> Loss:
    """The built-in and registered losses' declarations, by name."""
    if name not in _BUILTIN and name not in _registered:
        load_plugins(LOSSES)
    known = {**_BUILTIN, **{key: loss for key, (loss, _) in _registered.items()}}
    if name in known:
        return known[name]
    raise LossError(
        f"unknown loss {name!r}. {nearest(name, known)}".rstrip(),
        instead=f"use one of {', '.join(sorted(known))}; an expression in z and y such as "
        "'exp(z) - y*z'; a torch.nn loss; or gncompile.register_loss",
    )


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
    """Every known loss name, those of installed packages included, sorted."""
    load_plugins(LOSSES)
    return sorted({*_BUILTIN, *_registered})


def register_loss(
    name: str,
    expression: str | sympy.Expr,
    *,
    sampler: Sampler | None = None,
    targets: tuple[float, float] = (-math.inf, math.inf),
    outputs: int | None = None,
    negative_curvature: NegativeCurvature = "refuse",
    override: bool = False,
) -> SeparableLoss | CoupledLoss:
    """Declare a loss under ``name``, averaged over samples; its kind follows from the symbols it uses.

    ``z`` and ``y``: the separable loss ``E_n = Σ_j e(z_j, y_j)``. ``z1, z2, …`` (or ``z[0], z[1], …`` in
    text) and ``y1, …``: one value for at most 16 outputs that act together, the number of which is the
    highest index of a z, unless ``outputs`` is given. ``expression`` is text or sympy, convex in the outputs
    for every target in ``targets``; a coupled loss that is not may say ``negative_curvature="clip"``, and the
    negative eigenvalues of its output Hessian are then left out. ``sampler`` is for separable losses that
    are the likelihood of a known model; without one use the method ``"kfac_rp"`` in place of ``"kfac"``.

    Raises :class:`RegistrationError` if the name is taken (``override=True`` replaces it),
    :class:`ExpressionError` for bad text, and :class:`LossError` if the expression is not convex or its
    derivatives overflow.

        register_loss("weibull", "exp(z) - y*z", targets=(0, inf))
        register_loss("distance", "sqrt(1 + (z1 - y1)**2 + (z2 - y2)**2)")
    """
    _require_free(name, override)
    loss = define_loss(
        name,
        expression,
        sampler=sampler,
        targets=targets,
        outputs=outputs,
        negative_curvature=negative_curvature,
    )
    _registered[name] = (loss, caller(__name__))
    return loss


def loss_function(
    function: Callable[..., Any] | None = None,
    /,
    *,
    outputs: int | None = None,
    targets_count: int | None = None,
    name: str | None = None,
    override: bool = False,
    **options: Any,
) -> Any:
    """Declare a loss by a Python function of sympy symbols; a decorator, with or without arguments.

    The function takes ``(z, y)``: two symbols, or with ``outputs=K`` two tuples of symbols, of K outputs
    and of ``targets_count`` targets (default K; a batch has as many as the highest one used). Arguments with
    defaults are constants. ``options`` and what is raised are those of :func:`register_loss`.

    >>> @loss_function(outputs=2, override=True)
    ... def distance(z, y, softness=1):
    ...     return sympy.sqrt(softness + (z[0] - y[0])**2 + (z[1] - y[1])**2)
    >>> distance.outputs
    2
    """

    def declare(function: Callable[..., Any]) -> SeparableLoss | CoupledLoss:
        written = Written.read(function, "loss", 2)
        chosen = name or written.name
        _require_free(chosen, override)
        z: Any = OUTPUT if outputs is None else output_symbols(outputs)
        y: Any = TARGET if outputs is None else target_symbols(targets_count or outputs)
        constants = {key: number(value) for key, value in written.parameters.items()}
        expression = written.expression(z, y, **constants)
        loss = define_loss(chosen, expression, outputs=outputs, **options)
        _registered[chosen] = (loss, written.declared_at)
        return loss

    return declare if function is None else declare(function)


def define_loss(
    name: str,
    expression: str | sympy.Expr,
    *,
    sampler: Sampler | None = None,
    targets: tuple[float, float] = (-math.inf, math.inf),
    outputs: int | None = None,
    negative_curvature: NegativeCurvature = "refuse",
) -> SeparableLoss | CoupledLoss:
    """The loss of a declaration, checked, but not registered; see :func:`register_loss`."""
    check_expression("loss", name, expression, "loss_function")
    targets = check_interval("loss", name, "targets", targets)
    if negative_curvature not in get_args(NegativeCurvature):
        raise LossError(
            f"the loss {name!r} has negative_curvature={negative_curvature!r}",
            instead=f"use one of {', '.join(get_args(NegativeCurvature))}",
        )
    if outputs is not None and not (type(outputs) is int and 1 <= outputs <= MAX_OUTPUTS):
        raise LossError(
            f"the loss {name!r} is declared for outputs={outputs!r}",
            instead=f"give a whole number from 1 to {MAX_OUTPUTS}, or a separable loss in z and y, "
            "which takes any number of outputs",
        )
    read = _expression(expression)
    if outputs is None and not read.free_symbols & _COUPLED:
        if negative_curvature == "clip":
            raise LossError(
                f"the separable loss {name!r} cannot clip negative curvature",
                where=f"e(z, y) = {read}",
                instead='write it in z1 and y1: a coupled loss may use negative_curvature="clip"',
            )
        loss: SeparableLoss | CoupledLoss = SeparableLoss(
            name, read, sampler=sampler, targets=targets
        )
    else:
        loss = coupled_loss(name, read, outputs, targets, negative_curvature)
        if sampler is not None:
            raise LossError(
                f"the coupled loss {name!r} cannot have a sampler",
                instead="leave it out, and use method='kfac_rp' in place of 'kfac'",
            )
    _require_convex(loss)
    return loss


def _require_free(name: str, override: bool) -> None:
    check_name("loss", name, reserved=frozenset(_SYMBOLS))
    if not override and name in _BUILTIN.keys() | _registered.keys():
        first = (
            _registered[name][1]
            if name in _registered
            else "gncompile/losses/vocabulary.py (built in)"
        )
        raise RegistrationError(
            f"a loss named {name!r} is already registered",
            where=f"first registration: {first}",
            instead="choose another name, or pass override=True to replace it",
        )


LossSpec = Any
"""What is understood as a loss: see :func:`resolve_loss`."""


def resolve_loss(spec: LossSpec) -> Loss:
    """The :class:`Loss` meant by a name, an expression in ``z`` and ``y``, or a torch.nn loss.

    A dict, by the keys of the dict that ``forward`` returns, or a list, in the order of its tuple, is the sum
    of losses of several outputs: ``{"class": nn.CrossEntropyLoss(), "box": ("huber", 0.5)}``, the number
    being the weight of one.

    A function of tensors ``(z, y)``, torch's own (``F.mse_loss``, also by ``functools.partial``) or one that
    ends in a mean or sum over everything, is called with symbols (:mod:`gncompile.losses.lifted`).

    Raises :class:`LossError` for an unknown name, an unsupported module or one that has no
    Gauss-Newton matrix, and a loss that is not convex in ``z``; :class:`ExpressionError` for
    malformed or unsafe text.
    """
    if isinstance(spec, Mapping | list):
        return summed(spec, resolve_loss)
    loss = _resolved(spec)
    if isinstance(loss, SeparableLoss):  # also one that the caller made; the verdict is kept
        _require_convex(loss)
    return loss


def _resolved(spec: object) -> Loss:
    if isinstance(spec, Loss):
        return spec
    if isinstance(spec, str) and spec.isidentifier() and spec not in _SYMBOLS:
        return _named(spec)
    if isinstance(spec, str | sympy.Expr):
        return define_loss(shortened(str(spec)), spec)
    if callable(spec) and not isinstance(spec, type | torch.nn.Module):
        from .lifted import loss_from_function

        return loss_from_function(spec)
    from .losses_torch import loss_from_module

    return loss_from_module(spec)


_SYMBOLS: dict[str, sympy.Symbol] = {
    "z": OUTPUT,
    "y": TARGET,
    **{s.name: s for s in (*output_symbols(MAX_OUTPUTS), *target_symbols(MAX_OUTPUTS))},
}
_COUPLED = frozenset(_SYMBOLS.values()) - {OUTPUT, TARGET}
_INDEXED = {
    f"{letter}[{i}]": _SYMBOLS[f"{letter}{i + 1}"] for letter in "zy" for i in range(MAX_OUTPUTS)
}


def _expression(spec: str | sympy.Expr) -> sympy.Expr:
    """Text or sympy as an expression in this module's symbols, matched by name."""
    if isinstance(spec, str):
        read = parse_expression(spec, {**_SYMBOLS, **_INDEXED}, where="the loss")
    else:
        read = without_piecewise(over_symbols(spec, _SYMBOLS), "the loss")
    check_size(read, tuple(_SYMBOLS[name] for name in _SYMBOLS if name[0] == "z"), "the loss")
    return stable_loss(read)


def _require_convex(loss: SeparableLoss | CoupledLoss) -> None:
    where = f"e(z, y) = {loss.expression}"
    coupled = isinstance(loss, CoupledLoss)
    curvatures = loss.hessian.values() if isinstance(loss, CoupledLoss) else [loss.curvature]
    if all(curvature == 0 for curvature in curvatures):
        raise LossError(
            f"the loss {loss.name!r} has zero curvature everywhere: its output Hessian is 0 "
            "and a Gauss-Newton method has nothing to use",
            where=where,
            instead="use a smooth relative such as 'huber', 'smooth_l1' or 'log_cosh'",
        )
    if isinstance(loss, CoupledLoss):
        check_derivatives(loss)
        if loss.negative_curvature == "clip":
            return
    found = loss.convexity
    if found.verdict == "not convex":
        raise LossError(
            f"the loss {loss.name!r} is not convex in the output z: {found.reason}",
            where=where,
            instead="use a loss with e'' ≥ 0; if it is convex for the targets you have, "
            "declare them: gncompile.register_loss(name, expression, targets=(low, high))"
            + coupled
            * '; or leave negative curvature out: negative_curvature="clip"',
        )
    if isinstance(loss, CoupledLoss):
        return
    points = (
        unstable_point((e.slope, e.curvature), OUTPUT, TARGET, e.targets) for e in loss.instances
    )
    if unstable := next(filter(None, points), None):
        point, remedy = unstable
        raise LossError(
            f"the loss {loss.name!r} overflows where its derivatives are finite: {point}",
            where=where,
            instead=remedy,
        )
