"""Example inputs as users pass them: what is no batch of real numbers is refused, with a remedy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import TraceError


def checked_examples(
    module: nn.Module, given: object, dtype: torch.dtype | None = None
) -> tuple[Tensor, ...]:
    """One tensor ``[N, ...]`` an argument of forward, all of one floating-point dtype; ``dtype`` casts them.

    They are brought to where the module's parameters are, as a batch is.
    Whole numbers are cast if the module can work with the result; else they stay, for a table to look up.
    """
    if not isinstance(module, nn.Module):
        raise TraceError(f"the model is a {type(module).__name__}", instead="pass an nn.Module")
    examples = _there(module, _tensors(module, given))
    for i, x in enumerate(examples):
        if x.is_complex():
            _refuse(
                module, f"example input {i} is complex ({x.dtype})", "pass real and imaginary parts"
            )
        if x.layout is not torch.strided:
            _refuse(module, f"example input {i} is sparse ({x.layout})", "pass it as x.to_dense()")
    if not all(x.ndim > 0 and x.shape[0] > 0 for x in examples) or (
        len({x.shape[0] for x in examples}) > 1
    ):
        shapes = ", ".join(str(list(x.shape)) for x in examples)
        _refuse(
            module,
            f"the example inputs have shapes {shapes}",
            "give every input the same batch size N ≥ 1 as its first dimension",
        )
    if dtype is not None:
        return _cast(module, examples, dtype)
    real = {x.dtype for x in examples if x.is_floating_point()}
    if len(real) > 1 or (len(real) < 1 and failure(module, examples) is not None):
        dtypes = ", ".join(str(x.dtype) for x in examples)
        _refuse(
            module,
            f"the example inputs have dtypes {dtypes}",
            "convert them to the floating-point dtype of the model's parameters",
        )
    return examples


def _tensors(module: nn.Module, given: object) -> tuple[Tensor, ...]:
    """``given`` as a tuple of tensors."""
    if isinstance(given, Tensor):
        return (given,)
    if isinstance(given, Mapping):
        _refuse(
            module,
            f"the example inputs are a {type(given).__name__}",
            "pass a tuple of tensors [N, ...], in the order of forward's arguments",
        )
    parts: Sequence[Any] = list(given) if isinstance(given, list | tuple) else [given]
    if parts and all(isinstance(x, Tensor) for x in parts):
        return tuple(parts)
    kinds = list(dict.fromkeys(type(x).__name__ for x in parts if not isinstance(x, Tensor)))
    found = f"the example inputs are not tensors but {', '.join(kinds)}"
    if not parts:
        _refuse(
            module, "the example inputs are empty", "pass one tensor a forward argument, [N, ...]"
        )
    if all(isinstance(x, int) for x in parts) and len(parts) > 1:
        shape = ", ".join(map(str, parts))
        _refuse(module, f"{found}: a shape?", f"pass a tensor of that shape, torch.zeros({shape})")
    arrays = any(hasattr(x, "__array__") for x in parts if not isinstance(x, Tensor))
    instead = (
        "convert arrays by torch.as_tensor(x)"
        if arrays
        else "pass one tensor, or a tuple of tensors"
    )
    return _refuse(module, found, f"{instead}, [N, ...]")


def _there(module: nn.Module, examples: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The examples on the module's device; one without values has none to bring there."""
    like = next(module.parameters(), None)
    return (
        examples if like is None else tuple(x if x.is_meta else x.to(like.device) for x in examples)
    )


def _cast(
    module: nn.Module, examples: tuple[Tensor, ...], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    cast = tuple(x.to(dtype) for x in examples)
    if all(x.is_floating_point() for x in examples) or failure(module, cast) is None:
        return cast
    whole = tuple(x.to(dtype) if x.is_floating_point() else x.long() for x in examples)
    return whole if failure(module, whole) is None else cast


def failure(module: nn.Module, examples: tuple[Tensor, ...]) -> Exception | None:
    """What the module itself raises on the inputs, ``None`` if it works."""
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(*(x.detach().clone() for x in examples))
    except Exception as error:
        return error
    return None


def _refuse(module: nn.Module, found: str, instead: str) -> NoReturn:
    where = f"example_inputs of {type(module).__name__}"
    raise TraceError(found, where=where, instead=instead)
