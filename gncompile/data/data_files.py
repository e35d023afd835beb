"""Arrays of a user's ``.npz`` or ``.safetensors`` file, with the numbers and labels that are in it.

Nothing is unpickled, and only the arrays that are asked for are read. Their declared sizes are held against
the file and the memory first: two megabytes of an archive can say that they are two gigabytes.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..base.untrusted import shown
from ..errors import DataError, expected_got
from .table import CELL_OF_TEXT, MISSING, NAMES_SHOWN, Array, require_room

Arrays = dict[str, Array]

FORMAT = (
    "store numbers as arrays x [N, ...] and y [N] or [N, K], optionally validation_x and validation_y "
    "(.npz, .safetensors), or as a table with one header line (.csv, .parquet, .arrow)"
)


class Missing(Exception):
    """An array that the file lacks; the text lists what it has."""


def read_npz(path: Path, wanted: Collection[str]) -> Arrays:
    """The arrays of numpy's archive ``path`` that are wanted and there."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        found: Arrays = {}
        for name in wanted:
            info = members.get(f"{name}.npy")
            if info is None:
                continue
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"the array {name!r} is packed in a way numpy does not use",
                    where=str(path),
                    instead="write it with numpy.savez",
                )
            with archive.open(info) as stream:
                _check_header(name, stream, info.file_size, path)
            with archive.open(info) as stream:
                values = np.lib.format.read_array(stream, allow_pickle=False)
            if values.dtype.kind == "U":
                values = _texts(values)
            elif values.dtype.itemsize > 8:  # more digits and range than anything computes in
                with np.errstate(over="ignore"):  # what is infinite then is refused with its place
                    values = values.astype(np.float64)
            found[name] = values
        _require_some(found, [n.removesuffix(".npy") for n in members], path)
    return found


def _check_header(name: str, stream: Any, size: int, path: Path) -> None:
    """The shape and type that a ``.npy`` member declares, against its own size and the memory."""
    version = np.lib.format.read_magic(stream)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise DataError(f"the array {name!r} has format {version}", where=str(path))
    shape, _, dtype = readers[version](stream)
    text = dtype.kind == "U" and name not in ("x", "validation_x")
    if not text:
        require_numbers(name, dtype, path)
    declared = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or declared != size - stream.tell():
        raise DataError(
            f"the array {name!r} is not as long as it declares\n"
            + expected_got(f"{declared} bytes for {list(shape)}", size - stream.tell()),
            where=str(path),
        )
    more = CELL_OF_TEXT * math.prod(shape) if text else 0
    require_room(declared + more, path, f"the array {name!r}")


def _texts(values: Array) -> Array:
    """Texts as objects, None where one is empty; raises ``UnicodeError`` for half a surrogate pair."""
    found = [None if x.strip().lower() in MISSING else x.strip() for x in values.ravel().tolist()]
    "".join(x or "" for x in found).encode()
    return np.array(found, object).reshape(values.shape)


def read_safetensors(path: Path, wanted: Collection[str]) -> Arrays:
    """The arrays of a safetensors file that are wanted and there."""
    from safetensors import safe_open

    found: Arrays = {}
    with safe_open(path, framework="pt") as file:  # checks declared sizes against the file's
        names = list(file.keys())
        for name in wanted:
            if name not in names:
                continue
            declared = file.get_slice(name)
            require_room(8 * math.prod(declared.get_shape()), path, f"the array {name!r}")
            if declared.get_dtype() == "BF16":  # which numpy does not have
                found[name] = file.get_tensor(name).float().numpy()
            elif declared.get_dtype().startswith(("F", "I", "U", "BOOL")):
                found[name] = file.get_tensor(name).numpy()
            else:
                raise _no_numbers(name, declared.get_dtype(), path)
        _require_some(found, names, path)
    return found


def require_numbers(name: str, dtype: np.dtype[Any], path: Path) -> None:
    """Raise unless the array's elements are real numbers."""
    if dtype.hasobject:
        raise DataError(
            f"Object arrays cannot be loaded: {name!r} holds pickled Python objects",
            where=str(path),
            instead=FORMAT,
        )
    if dtype.kind not in "biuf":
        raise _no_numbers(name, str(dtype), path)


def _no_numbers(name: str, kind: str, path: Path) -> DataError:
    found = f"the array {name!r} holds no real numbers but {shown(kind)[1:-1]}"
    return DataError(found, where=str(path), instead=FORMAT)


def _require_some(found: Arrays, names: list[str], path: Path) -> None:
    if not found:
        more = ["…"] if len(names) > NAMES_SHOWN else []
        listed = ", ".join([*(shown(n, 40)[1:-1] for n in names[:NAMES_SHOWN]), *more]) or "none"
        raise Missing(listed)


ARCHIVES: Mapping[str, Callable[[Path, Collection[str]], Arrays]] = {
    ".npz": read_npz,
    ".safetensors": read_safetensors,
}
