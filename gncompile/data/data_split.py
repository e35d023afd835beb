"""From arrays ``x, y`` to training and validation data: checked, divided, flat, and the numbers they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..base.untrusted import shown
from ..errors import DataError, expected_got, message
from .data_files import ARCHIVES, FORMAT, Missing, read_csv
from .data_spec import DataSpec, DataSplit

Array = np.ndarray[Any, np.dtype[Any]]
MOST_LABELS = 10**9
EXACT = 2**53
"""Integers that float64 holds, all of them."""


def load_file(spec: DataSpec) -> DataSplit:
    """The data of a user's file; :class:`~gncompile.errors.DataError` if missing or malformed."""
    try:
        if "\0" in spec.name:
            raise ValueError("a NUL character")
        path = Path(spec.name).expanduser()
        there, size = path.is_file(), path.stat().st_size if path.exists() else 0
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, an unknown user
        found = f"{shown(spec.name)} is no path: {str(error)[:100]}"
        raise DataError(found, where="name in [data]") from None
    if not there:
        raise DataError(
            f"no data file {spec.name!r}",
            where=f"looked at {path.absolute()}",
            instead="check the path; a relative path is taken from the model file's folder",
        )
    if not size:
        raise DataError("cannot read the data file: it is empty", where=str(path))
    autoencoder = spec.target == "input"
    needed = ("x",) if autoencoder else ("x", "y")
    wanted = (*needed, *(f"validation_{name}" for name in needed))
    columns: list[str] | None = None
    try:
        if path.suffix == ".csv":
            arrays, columns = read_csv(path, spec.targets, autoencoder)
        else:
            arrays = ARCHIVES[path.suffix](path, wanted)
    except DataError:
        raise
    except Missing as error:
        raise DataError(_lacks("x", needed, str(error), str(path))) from None
    except Exception as error:  # whatever a damaged file makes numpy, zipfile or safetensors raise
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise DataError(
            f"cannot read the data file: {said}", where=str(path), instead=FORMAT
        ) from error
    for name, values in arrays.items():
        _require_rows(name, values, path)
        _require_finite(name, values, path, columns, spec.targets)
    return split(replace(spec, target=spec.target or "value"), arrays, str(path))


def _require_rows(name: str, values: Array, path: Path) -> None:
    if not values.ndim or not values.size:
        found = (
            "is a single number" if not values.ndim else f"of shape {list(values.shape)} is empty"
        )
        raise DataError(f"the array {name!r} {found}", where=str(path), instead=FORMAT)


def _require_finite(
    name: str, values: Array, path: Path, columns: list[str] | None, targets: tuple[str, ...]
) -> None:
    """Raise for the first value that is NaN or infinite, with its place in the file."""
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    rows = values.reshape(len(values), -1)
    row, column = (int(i) for i in np.argwhere(~np.isfinite(rows))[0])
    if columns is None:
        place = f"row {row}, column {column} of {name}, counted from 0, in {path}"
    else:
        own = [c for c in columns if (c in targets) == (name == "y")]
        own = list(targets) if name == "y" else own
        place = f"sample {row + 1} below the header, column {own[column]!r} of {path}"
    raise DataError(
        f"samples contain NaN or infinite values: {rows[row, column]}",
        where=place,
        instead="leave the sample out, or put a number there",
    )


def _lacks(name: str, needed: Sequence[str], there: str, where: str) -> str:
    found = f"no array {name!r}\n{expected_got(', '.join(needed), there)}"
    return message(found, where=where, instead=FORMAT)


def split(spec: DataSpec, arrays: dict[str, Array], where: str) -> DataSplit:
    """Tensors from ``x, y`` and, if present, ``validation_x, validation_y``; else a tenth is held out."""
    needed = ["x"] if spec.target == "input" else ["x", "y"]
    for name in needed:
        if name not in arrays:
            raise DataError(_lacks(name, needed, ", ".join(arrays) or "none", where))
    if "validation_x" not in arrays:
        arrays = _hold_out(spec, arrays, needed, where)
    train = _samples(spec, arrays, "", spec.train, where)
    held_out = _samples(spec, arrays, "validation_", spec.validation, where)
    for what, given in (("samples", 0), ("targets", 1)):
        a, b = (part[given].shape[1:] for part in (train, held_out))
        if a != b:
            raise DataError(
                f"training and validation {what} differ in size\n"
                + expected_got(f"{math.prod(a)} features", f"{math.prod(b)} features"),
                where=where,
            )
    shape = spec.shape or tuple(arrays["x"].shape[1:]) or (1,)
    if math.prod(shape) != train[0].shape[1]:
        raise DataError(
            "shape does not fit the samples\n"
            + expected_got(f"{train[0].shape[1]} features", f"{list(shape)}"),
            where="shape in [data]",
        )
    return DataSplit(*train, *held_out, shape)


def _hold_out(
    spec: DataSpec, arrays: dict[str, Array], names: list[str], where: str
) -> dict[str, Array]:
    """Divide the rows, in an order that depends on the seed only, into training and validation."""
    rows = len(arrays["x"])
    if any(len(arrays[name]) != rows for name in names):
        raise DataError(
            f"x has {rows} samples, y has {len(arrays['y'])}", where=where, instead=FORMAT
        )
    held = max(1, rows // 10) if spec.validation is None else spec.validation
    if not 0 < held < rows:
        raise DataError(
            f"cannot hold {held} of {rows} samples out for validation",
            where=where,
            instead="give fewer, or provide validation_x",
        )
    order = permutation(rows, spec.seed, 0)
    parts: dict[str, Array] = {}
    for name in names:
        parts[name] = arrays[name][order[held:]]
        parts[f"validation_{name}"] = arrays[name][order[:held]]
    return parts


def _samples(
    spec: DataSpec, arrays: dict[str, Array], prefix: str, count: int | None, where: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first ``count`` samples, flat, and their targets as ``spec.target`` says."""
    x = arrays[f"{prefix}x"]
    if count is not None and not 0 < count <= len(x):
        raise DataError(
            f"{count} samples asked for, but there are {len(x)}",
            where=f"{prefix}x of {where}",
            instead="lower train or validation in [data]",
        )
    count = len(x) if count is None else count
    flat = _floating(x[:count].reshape(count, -1), f"{prefix}x of {where}")
    if x.dtype == np.uint8:  # images
        flat = flat / 255 if where == "MNIST" else flat.double() / 255
    if spec.target == "input":
        return flat, flat
    y = arrays.get(f"{prefix}y")
    if y is None or len(y) != len(x):
        found = "missing" if y is None else f"{len(y)} targets for {len(x)} samples"
        raise DataError(f"{prefix}y: {found}", where=where, instead=FORMAT)
    return flat, _targets(spec, y[:count], f"{prefix}y of {where}")


def _floating(values: Array, where: str) -> torch.Tensor:
    """Numbers as they are: float32 where that holds every number of their type, else float64."""
    if values.dtype.kind in "iu" and (values.max() > EXACT or values.min() < -EXACT):
        raise DataError(
            f"there are integers beyond {EXACT}, which floating point rounds",
            where=where,
            instead="subtract an offset, or store them as float64 if rounding is meant",
        )
    exact = np.float32 if np.can_cast(values.dtype, np.float32) else np.float64
    return torch.from_numpy(np.array(values, exact, order="C"))


def _targets(spec: DataSpec, y: Array, where: str) -> torch.Tensor:
    if spec.target == "value":
        return _floating(y.reshape(len(y), -1), where)
    labels = y.reshape(-1)
    whole = len(labels) == len(y) and np.array_equal(labels, np.floor(labels))
    if not whole or labels.min() < 0 or labels.max() >= MOST_LABELS:
        raise DataError(
            f"labels must be one whole number >= 0 a sample, below {MOST_LABELS}",
            where=where,
            instead='use target = "value" for other targets',
        )
    return torch.from_numpy(labels.astype(np.int64))


def permutation(count: int, seed: int, epoch: int) -> Array:
    """A permutation of ``range(count)`` that depends on ``(seed, epoch)`` only.

    Sorting uniform numbers keeps it the same across numpy's versions; its own shuffles may change.
    """
    stream = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    return np.argsort(stream.random(count), kind="stable")
