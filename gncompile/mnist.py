"""MNIST: found on this machine, or downloaded, and always checked.

The four IDX files, plain or ``.gz``, are looked for in the folder ``GNCOMPILE_DATA``, in its ``mnist``
folder, and in the cache. Only if a file is nowhere it is downloaded to the cache. Checksums are of the
decompressed bytes, because every mirror compresses differently.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import config
from .errors import DataError, expected_got, message
from .files import atomic_write

SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

Array = np.ndarray[Any, np.dtype[Any]]


def read(part: str) -> tuple[Array, Array]:
    """Images ``[N, 28, 28]`` and labels ``[N]``, both uint8, of ``part`` ``"train"`` or ``"t10k"``."""
    return (
        parse_idx(_contents(f"{part}-images-idx3-ubyte")),
        parse_idx(_contents(f"{part}-labels-idx1-ubyte")),
    )


def parse_idx(content: bytes) -> Array:
    """An IDX file of unsigned bytes: ``00 00 08 ndim``, ``ndim`` big-endian sizes, then the bytes."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise DataError(
            message(
                "not an IDX file of unsigned bytes\n"
                + expected_got("00 00 08 ..", content[:4].hex(" ") or "nothing")
            )
        )
    start = 4 + 4 * content[3]
    sizes = struct.unpack(f">{content[3]}I", content[4:start])
    if math.prod(sizes) != len(content) - start:
        raise DataError(
            message(
                "an IDX file is cut short or too long\n"
                + expected_got(f"{math.prod(sizes)} bytes for {list(sizes)}", len(content) - start)
            )
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy()


def _contents(name: str) -> bytes:
    """The checked, decompressed bytes of one file."""
    folders = _folders()
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return _checked(name, _decompress(path.read_bytes(), str(path)), str(path))
    return _download(name, folders)


def _folders() -> list[Path]:
    folders: list[Path] = []
    if data := config.folder("data"):
        folders += [data, data / "mnist"]
    if cache := config.folder("cache"):
        folders.append(cache / "mnist")
    return folders


def _decompress(content: bytes, where: str) -> bytes:
    if content[:2] != b"\x1f\x8b":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            message(f"a damaged .gz file: {error}", where=where, instead="delete it and try again")
        ) from error


def _checked(name: str, content: bytes, where: str) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if digest != SHA256[name]:
        raise DataError(
            message(
                f"not MNIST's {name}: the SHA-256 of its decompressed bytes differs\n"
                + expected_got(SHA256[name], digest),
                where=where,
                instead="delete the file; it is found elsewhere or downloaded again",
            )
        )
    return content


def _download(name: str, looked: list[Path]) -> bytes:
    failures = []
    for mirror in MIRRORS:
        address = f"{mirror}{name}.gz"
        try:
            with urllib.request.urlopen(address, timeout=20) as response:
                packed = response.read()
        except OSError as error:
            failures.append(f"{address}: {error}")
            continue
        content = _checked(name, _decompress(packed, address), address)
        atomic_write(looked[-1] / f"{name}.gz", packed)
        return content
    tried = "\n".join(f"              {place}" for place in [*map(str, looked), *failures])
    raise DataError(
        message(
            f"MNIST's file {name} (or {name}.gz) is missing and could not be downloaded",
            where=f"looked in\n{tried}",
            instead="put the four IDX files into a folder and set GNCOMPILE_DATA to it",
        )
    )
