"""The arguments of ``compile`` that are no settings, checked before anything is traced."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from ..base.options import Steps, checked
from ..errors import CompileError, require_known
from ..runtime.executable import BACKENDS, PRECISIONS

DTYPES = (torch.float32, torch.float64)


def checked_seed(seed: object) -> int:
    """``seed`` as an int of 63 bits, or :class:`~gncompile.errors.CompileError`."""
    return int(checked("seed", seed, Steps, "a whole number from 0 to 2**63 - 1"))


def require_dtype(dtype: object) -> None:
    """Raise :class:`~gncompile.errors.CompileError` for a precision that nothing is computed in."""
    if dtype not in DTYPES:
        shown = dtype if isinstance(dtype, torch.dtype) else f"{dtype!r}"[:100]
        raise CompileError(
            f"dtype {shown} is not supported", instead="use torch.float32 or torch.float64"
        )


def check_arguments(*, dtype: object, backend: object, precision: object, tune: object) -> None:
    """Raise :class:`~gncompile.errors.CompileError` for what is of another type, or no known word."""
    require_known("backend", checked("backend", backend, str, "a name"), BACKENDS)
    require_known("precision", checked("precision", precision, str, "a name"), PRECISIONS)
    if dtype is not None:
        require_dtype(dtype)
    if not isinstance(tune, str | os.PathLike | Mapping):
        raise CompileError(
            f"tune is of type {type(tune).__name__}",
            instead="pass 'off', 'cached', 'quick' or 'full', or the path of a .json file",
        )
