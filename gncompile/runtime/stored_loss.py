"""A loss as plain data for a checkpoint, and back: expressions as text, read by the whitelist parser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy

from ..coupled_loss import output_symbols, target_symbols
from ..functions import PRIMITIVES
from ..losses import OUTPUT, TARGET, CoupledLoss, Loss, Scale, SeparableLoss, SoftmaxCrossEntropy
from ..parsing import FUNCTIONS, parse_expression

# Expressions are printed by sympy's names of functions, such as Abs.
_PRINTED: dict[str, Callable[..., sympy.Expr]] = {
    **FUNCTIONS,
    **{function.__name__: function for function in PRIMITIVES.values()},
}


def loss_to_data(loss: Loss) -> dict[str, Any]:
    """What :func:`loss_from_data` makes the same loss from."""
    data: dict[str, Any] = {
        "name": loss.name,
        "scale": {"factor": loss.scale.factor, "over": loss.scale.over},
    }
    if isinstance(loss, SoftmaxCrossEntropy):
        return {**data, "label_smoothing": loss.label_smoothing}
    if isinstance(loss, CoupledLoss):
        return {
            **data,
            "expression": str(loss.expression),
            "outputs": loss.outputs,
            "targets_count": loss.targets_count,
            "targets": list(loss.targets),
            "negative_curvature": loss.negative_curvature,
        }
    forms = {key: _text(getattr(loss, key)) for key in ("slope_form", "curvature_form")}
    return {
        **data,
        "expression": str(loss.expression),
        "sampler": loss.sampler,
        "targets": list(loss.targets),
        **forms,
    }


def loss_from_data(data: dict[str, Any]) -> Loss:
    """The loss that ``data`` was made from; nothing in it is executed."""
    scale = Scale(**data["scale"])
    if "label_smoothing" in data:
        return SoftmaxCrossEntropy(data["name"], data["label_smoothing"], scale)
    low, high = data["targets"]
    if "outputs" in data:
        outputs, targets = int(data["outputs"]), int(data["targets_count"])
        symbols = {s.name: s for s in (*output_symbols(outputs), *target_symbols(targets))}
        return CoupledLoss(
            data["name"],
            parse_expression(data["expression"], symbols, _PRINTED, where="the stored loss"),
            outputs,
            targets,
            scale,
            (float(low), float(high)),
            data["negative_curvature"],
        )
    expression = _expression(data["expression"])
    assert expression is not None
    return SeparableLoss(
        data["name"],
        expression,
        data["sampler"],
        scale,
        _expression(data["slope_form"]),
        _expression(data["curvature_form"]),
        (float(low), float(high)),
    )


def _text(expression: sympy.Expr | None) -> str | None:
    return None if expression is None else str(expression)


def _expression(text: str | None) -> sympy.Expr | None:
    if text is None:
        return None
    return parse_expression(text, {"z": OUTPUT, "y": TARGET}, _PRINTED, where="the stored loss")
