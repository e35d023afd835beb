"""Does a batch of targets fit a loss?"""

from __future__ import annotations

import math

import torch

from ..errors import BatchError, expected_got


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


def check_class_target(
    name: str, z_shape: tuple[int, ...], z_dtype: torch.dtype, target: torch.Tensor
) -> None:
    """Raise :class:`BatchError` unless ``target`` is class indices [N] or soft targets [N, K].

    The values of a tensor on a device are not looked at, which would wait for it.
    """
    _check_batch(name, z_shape)
    batch, classes = z_shape
    indices, soft = _spell((batch,), torch.int64), _spell(z_shape, z_dtype)
    is_soft = target.ndim == 2
    fits = (
        (tuple(target.shape), target.dtype) == ((batch, classes), z_dtype)
        if is_soft
        else (tuple(target.shape), target.dtype) == ((batch,), torch.int64)
    )
    if not fits:
        raise _mismatch(name, f"{indices} class indices, or {soft} soft targets", target)
    if target.device.type != "cpu":
        return
    if is_soft:
        lightest = target.sum(dim=1).min().item()
        if not lightest >= 0:
            raise BatchError(
                f"the loss {name!r} needs soft targets with a non-negative sum in every row, "
                f"got {lightest:g}",
                where="the target",
                instead="use probabilities, rows that sum to 1",
            )
        return
    low, high = (int(value) for value in torch.aminmax(target))
    if low < 0 or high >= classes:
        ranges = expected_got(f"0 … {classes - 1}", f"{low} … {high}")
        raise BatchError(
            f"class indices out of range\n{ranges}",
            where=f"the target of the loss {name!r}",
            instead="leave out samples marked with an ignore index, and check the model's "
            "number of outputs",
        )


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
