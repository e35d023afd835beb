"""Does a batch of targets fit a loss, and what rows of numbers does a program read of it?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import BatchError, expected_got


def taken_apart(name: str, target: Any, parts: Sequence[str]) -> tuple[Tensor, ...]:
    """The tensors of a target that is ``(y, …)``, or ``y`` alone; :class:`BatchError` for another form."""
    given = (target,) if len(parts) == 1 else target
    form = f"({', '.join(parts)})" if len(parts) > 1 else "one tensor"
    fits = isinstance(given, tuple | list) and len(given) == len(parts)
    if not fits or not all(isinstance(each, Tensor) for each in given):
        found = type(target).__name__ + (
            f" of {len(target)}" if isinstance(target, tuple | list) else ""
        )
        raise BatchError(
            f"the loss {name!r} takes targets {form}, got a {found}",
            where="the target",
            instead=f"pass {form}, tensors with one row a sample",
        )
    return tuple(given)


def rows_of(columns: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """What a program reads: for every sample one row of all these, one after another."""
    flat = [each.to(dtype).reshape(each.shape[0], -1) for each in columns]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)


def element_weights(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, weights: Tensor
) -> Tensor:
    """Weights of the leading dimensions of ``shape``, ``[N]`` say, for every element; 0 masks.

    Raises :class:`BatchError` for another shape and for weights that are negative or not finite; on a
    device, where looking would wait, these become NaN.
    """
    fits = 1 <= weights.dim() <= len(shape) and tuple(weights.shape) == shape[: weights.dim()]
    if not fits or weights.is_complex():
        raise _mismatch(f"{name}', its weights", f"{list(shape[:1])} or {list(shape)}", weights)
    weights = weights.to(dtype)
    bad = ~((weights >= 0) & (weights < math.inf))
    if weights.device.type == "cpu" and bad.any():
        raise BatchError(
            f"the loss {name!r} got the weight {float(weights[bad][0]):g}",
            where="the weights of the target",
            instead="use finite weights, none of them negative; 0 leaves out",
        )
    weights = weights.masked_fill(bad, float("nan"))
    return weights.reshape(*weights.shape, *[1] * (len(shape) - weights.dim())).expand(shape)


def check_elementwise_target(
    name: str,
    z_shape: tuple[int, ...],
    z_dtype: torch.dtype,
    target: torch.Tensor,
    bounds: tuple[float, float],
) -> None:
    """Raise :class:`BatchError` unless ``target`` is like the output and inside ``bounds``.

    The values of a tensor on a device are not looked at, which would wait for it.
    """
    _check_batch(name, z_shape)
    if tuple(target.shape) != tuple(z_shape) or target.dtype != z_dtype:
        raise _mismatch(name, _spell(z_shape, z_dtype), target)
    if bounds == (-math.inf, math.inf) or target.device.type != "cpu":
        return
    low, high = (value.item() for value in torch.aminmax(target))
    if not (bounds[0] <= low and high <= bounds[1]):
        found = f"the loss {name!r} is declared for targets between {bounds[0]:g} and {bounds[1]:g}"
        raise BatchError(
            f"{found}, the batch has targets between {low:g} and {high:g}", where="the target"
        )


def within(target: Tensor, bounds: tuple[float, float]) -> Tensor:
    """``target`` with NaN for what lies out of ``bounds``: a step on a device leaves the batch out."""
    if bounds == (-math.inf, math.inf):
        return target
    return target.masked_fill(~((target >= bounds[0]) & (target <= bounds[1])), float("nan"))


def check_class_target(
    name: str,
    z_shape: tuple[int, ...],
    z_dtype: torch.dtype,
    target: torch.Tensor,
    ignored: int | None = None,
    hidden: Tensor | None = None,
) -> None:
    """Raise :class:`BatchError` unless ``target`` is class indices [N, …] or soft targets [N, K, …].

    ``ignored`` is an index that is no class, ``hidden`` tells the places that do not count. The values of a
    tensor on a device are not looked at, which would wait for it.
    """
    _check_batch(name, z_shape)
    classes, places = z_shape[1], (z_shape[0], *z_shape[2:])
    indices, soft = _spell(places, torch.int64), _spell(z_shape, z_dtype)
    is_soft = target.ndim == len(z_shape)
    fits = (
        (tuple(target.shape), target.dtype) == (z_shape, z_dtype)
        if is_soft
        else (tuple(target.shape), target.dtype) == (places, torch.int64)
    )
    if not fits:
        raise _mismatch(name, f"{indices} class indices, or {soft} soft targets", target)
    if target.device.type != "cpu":
        return
    if is_soft:
        mass = target.sum(dim=1)
        lightest = (mass if hidden is None else mass.masked_fill(hidden, 0.0)).min().item()
        if not lightest >= 0:
            raise BatchError(
                f"the loss {name!r} needs soft targets with a non-negative sum in every row, "
                f"got {lightest:g}",
                where="the target",
                instead="use probabilities, rows that sum to 1",
            )
        return
    bad = (target < 0) | (target >= classes)
    bad &= True if ignored is None else target != ignored
    bad &= True if hidden is None else ~hidden
    if bad.any():
        low, high = (int(value) for value in torch.aminmax(target))
        ranges = expected_got(f"0 … {classes - 1}", f"{low} … {high}")
        raise BatchError(
            f"class indices out of range\n{ranges}",
            where=f"the target of the loss {name!r}",
            instead="leave out samples marked with an ignore index, or mark them by another negative number, "
            "nn.CrossEntropyLoss(ignore_index=-1); and check the model's number of outputs",
        )


def class_rows(indices: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Rows ``[…, classes]`` with a one each; NaN for an index out of range.

    Not ``torch.nn.functional.one_hot``, which on a CUDA device ends the process for such an index.
    """
    rows = (indices[..., None] == torch.arange(classes, device=indices.device)).to(dtype)
    return rows.masked_fill(((indices < 0) | (indices >= classes))[..., None], float("nan"))


def of_mass(rows: Tensor) -> Tensor:
    """Soft targets, with NaN for rows of negative mass."""
    return rows.masked_fill(~(rows.sum(dim=-1, keepdim=True) >= 0), float("nan"))


def _check_batch(name: str, z_shape: tuple[int, ...]) -> None:
    if z_shape[0] == 0:
        raise BatchError(f"the loss {name!r} got an empty batch", where="the batch")


def _mismatch(name: str, expected: str, target: torch.Tensor) -> BatchError:
    got = _spell(tuple(target.shape), target.dtype)
    return BatchError(
        f"the target does not fit the loss {name!r} and the model's output\n"
        f"{expected_got(expected, got)}",
        where="the target",
        instead="reshape the target, or convert it with .to(dtype)",
    )


def _spell(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{list(shape)} {str(dtype).removeprefix('torch.')}"


def mapped(function: Callable[[Any], Any], target: Any) -> Any:
    """``function`` of every tensor of a target that is one, or a tuple, list or dict of them."""
    if isinstance(target, Mapping):
        return {key: mapped(function, each) for key, each in target.items()}
    if isinstance(target, tuple | list):
        return tuple(mapped(function, each) for each in target)
    return function(target)


def tensors_of(target: Any) -> list[Any]:
    """The tensors of a target, in order."""
    found: list[Any] = []
    mapped(found.append, target)
    return found
