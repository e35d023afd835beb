"""A loss as plain data for a checkpoint, and back: expressions as text, read by the whitelist parser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args

import sympy

from ..base.typed import hints
from ..functions.parsing import FUNCTIONS, parse_expression
from ..functions.primitives import PRIMITIVES
from ..losses.coupled_loss import NegativeCurvature, output_symbols, target_symbols
from ..losses.per_output import PerOutput
from ..losses.sum_loss import Term
from ..losses.vocabulary import (
    OUTPUT,
    TARGET,
    CoupledLoss,
    Loss,
    Scale,
    SeparableLoss,
    SoftmaxCrossEntropy,
    SumLoss,
)

T = TypeVar("T")
MAX_COLUMNS = 1024
"""Outputs or targets of a stored expression at most; an expression has far fewer."""

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
    if isinstance(loss, SumLoss):
        terms = [[t.key, loss_to_data(t.loss), list(t.shape)] for t in loss.terms]
        return {**data, "terms": terms, "named": loss.named}
    data["weighted"] = loss.weighted
    if isinstance(loss, SoftmaxCrossEntropy):
        return {
            **data,
            "label_smoothing": loss.label_smoothing,
            "class_weights": _per_output_data(loss.class_weights),
            "ignore_index": loss.ignore_index,
            "classes": loss.classes,
            "places": list(loss.places),
        }
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
        "weights": _per_output_data(loss.weights),
        "constants": [[name, _per_output_data(each)] for name, each in loss.constants],
        "extras": list(loss.extras),
        **forms,
    }


def loss_from_data(data: Mapping[str, Any]) -> Loss:
    """The loss that ``data`` was made from; nothing in it is executed.

    Raises ``TypeError`` or ``KeyError`` for data of another form, and the errors of a declaration.
    """
    name = _of(str, data["name"])
    given = _of(dict, data["scale"])
    scale = Scale(factor=_number(given["factor"]), over=_of(str, given["over"]))  # type: ignore[arg-type]
    if scale.over not in get_args(hints(Scale)["over"]):
        raise TypeError(f"scale over {scale.over!r}")
    if "terms" in data:
        terms = []
        for key, each, shape in _of(list, data["terms"]):
            loss = loss_from_data(_of(dict, each))
            if isinstance(loss, SumLoss):
                raise TypeError("a sum within a sum")
            terms.append(Term(_of(str, key), loss, _sizes(shape)))
        return SumLoss(tuple(terms), _of(bool, data["named"]))
    weighted = _of(bool, data.get("weighted", False))
    if "label_smoothing" in data:
        ignored = data.get("ignore_index")
        return SoftmaxCrossEntropy(
            name,
            _number(data["label_smoothing"]),
            scale,
            _per_output(data.get("class_weights")),
            None if ignored is None else _of(int, ignored),
            weighted,
            _of(int, data.get("classes", 0)),
            _sizes(data.get("places", [])),
        )
    low, high = map(_number, _of(list, data["targets"]))
    if "outputs" in data:
        outputs, targets = _count(data["outputs"]), _count(data["targets_count"])
        symbols = {s.name: s for s in (*output_symbols(outputs), *target_symbols(targets))}
        text = _of(str, data["expression"])
        curvature: Any = data["negative_curvature"]
        if curvature not in get_args(NegativeCurvature):
            raise TypeError(f"negative_curvature = {curvature!r}")
        return CoupledLoss(
            name,
            parse_expression(text, symbols, _PRINTED, where="the stored loss"),
            outputs,
            targets,
            scale,
            (low, high),
            curvature,
            weighted,
        )
    constants = [(_of(str, k), _given(each)) for k, each in _of(list, data.get("constants", []))]
    extras = [_of(str, each) for each in _of(list, data.get("extras", []))]
    named = [*(key for key, _ in constants), *extras]
    expression = _expression(data["expression"], named)
    if expression is None:
        raise TypeError("a loss without an expression")
    sampler = data["sampler"]
    return SeparableLoss(
        name,
        expression,
        None if sampler is None else _of(str, sampler),  # type: ignore[arg-type]
        scale,
        _expression(data["slope_form"], named),
        _expression(data["curvature_form"], named),
        (low, high),
        _per_output(data.get("weights")),
        tuple(constants),
        tuple(extras),
        weighted,
    )


def _of(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} is due")
    return value


def _number(value: object) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{type(value).__name__} where a number is due")
    return float(value)  # type: ignore[arg-type]


def _count(value: object) -> int:
    count = _of(int, value)
    if not 0 < count <= MAX_COLUMNS:
        raise TypeError(f"{count} outputs or targets")
    return count


def _text(expression: sympy.Expr | None) -> str | None:
    return None if expression is None else str(expression)


def _expression(text: object, named: Sequence[str] = ()) -> sympy.Expr | None:
    if text is None:
        return None
    symbols = {"z": OUTPUT, "y": TARGET, **{n: sympy.Symbol(n, positive=True) for n in named}}
    return parse_expression(_of(str, text), symbols, _PRINTED, where="the stored loss")


def _sizes(sizes: object) -> tuple[int, ...]:
    return tuple(_of(int, size) for size in _of(list, sizes))


def _per_output_data(each: PerOutput | None) -> list[list[Any]] | None:
    return None if each is None else [list(each.shape), list(each.values)]


def _per_output(data: object) -> PerOutput | None:
    return None if data is None else _given(data)


def _given(data: object) -> PerOutput:
    shape, values = _of(list, data)
    numbers = tuple(map(_number, _of(list, values)))
    if math.prod(_sizes(shape)) != len(numbers):
        raise TypeError(f"{len(numbers)} numbers in the shape {shape}")
    return PerOutput(_sizes(shape), numbers)
