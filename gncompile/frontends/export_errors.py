"""Say in the user's terms why ``torch.export`` could not follow a module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import TraceError, message
from .fx_nodes import origin_of_error

_CONTROL_FLOW = (
    "data-dependent",
    "datadependent",
    "could not guard",
    "could not extract specialized",
)


def check_examples(module: nn.Module, examples: tuple[Tensor, ...]) -> None:
    """Example inputs are floating-point tensors ``[N, ...]`` with one batch size and one dtype."""
    where = f"example_inputs of {type(module).__name__}"
    if not isinstance(module, nn.Module):
        raise TraceError(
            message(f"the model is a {type(module).__name__}", instead="pass an nn.Module")
        )
    if not examples or not all(isinstance(x, Tensor) for x in examples):
        raise TraceError(
            message(
                "the example inputs are not tensors",
                where=where,
                instead="pass one tensor, or a tuple of tensors, [N, ...]",
            )
        )
    if (
        not all(x.ndim > 0 and x.shape[0] > 0 for x in examples)
        or len({x.shape[0] for x in examples}) > 1
    ):
        shapes = ", ".join(str(list(x.shape)) for x in examples)
        raise TraceError(
            message(
                f"the example inputs have shapes {shapes}",
                where=where,
                instead="give every input the same batch size N ≥ 1 as its first dimension",
            )
        )
    if len({x.dtype for x in examples}) > 1 or not examples[0].is_floating_point():
        dtypes = ", ".join(str(x.dtype) for x in examples)
        raise TraceError(
            message(
                f"the example inputs have dtypes {dtypes}",
                where=where,
                instead="convert them to the floating-point dtype of the model's parameters",
            )
        )


def explain_failure(
    error: Exception, module: nn.Module, examples: tuple[Tensor, ...]
) -> TraceError:
    """The :class:`TraceError` for an exception ``torch.export`` raised."""
    name, text = type(module).__name__, str(error)
    where = str(origin_of_error(error)) if origin_of_error(error).location else f"forward of {name}"
    own = _eager_failure(module, examples)
    batch = examples[0].shape[0]
    if own is not None and _eager_failure(module, tuple(x[:1] for x in examples)) is None:
        return _fixed_batch(where, f"{name} runs for a batch of 1 and fails for a batch of {batch}")
    if own is not None:
        return TraceError(
            message(
                f"{name} itself fails on the example inputs: {type(own).__name__}: {own}",
                where=where,
                instead="make module(*example_inputs) work first",
            )
        )
    if any(sign in text.lower() for sign in _CONTROL_FLOW):
        return TraceError(
            message(
                f"control flow in {name} depends on the data, not only on shapes",
                where=where,
                instead="use torch.where, so that every sample takes the same path",
            )
        )
    if "batch" in text and ("constraint" in text.lower() or "specializ" in text.lower()):
        return _fixed_batch(f"forward of {name}", f"{name} works only for some batch sizes")
    return TraceError(
        message(
            f"torch.export cannot trace {name}: {text.strip().splitlines()[0] if text else error!r}",
            where=where,
            instead="make forward traceable by torch.export.export",
        )
    )


def _fixed_batch(where: str, found: str) -> TraceError:
    return TraceError(
        message(
            f"the model fixes the batch size: {found}",
            where=where,
            instead="write x.shape[0] or -1 for the batch dimension; neither branch on it nor slice it",
        )
    )


def _eager_failure(module: nn.Module, examples: tuple[Tensor, ...]) -> Exception | None:
    try:
        with torch.no_grad():
            module(*examples)
    except Exception as error:
        return error
    return None
