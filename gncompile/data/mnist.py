"""MNIST: found on this machine, or downloaded, and always checked.

The four IDX files, plain or ``.gz``, are looked for in the folder ``GNCOMPILE_DATA``, in its ``mnist``
folder, and in the cache. Only if a file is nowhere it is downloaded to the cache. Checksums are of the
decompressed bytes, because every mirror compresses differently; the sizes of these are known, so no more than
that is ever unpacked, or waited for.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import struct
import threading
import time
import urllib.request
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..base import config
from ..base.files import atomic_write
from ..errors import DataError, expected_got

SHA256: Mapping[str, str] = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
LARGEST: Mapping[str, int] = {
    "train-images-idx3-ubyte": 16 + 60_000 * 28 * 28,
    "train-labels-idx1-ubyte": 8 + 60_000,
    "t10k-images-idx3-ubyte": 16 + 10_000 * 28 * 28,
    "t10k-labels-idx1-ubyte": 8 + 10_000,
}
"""Bytes of the files."""
WRAPPING = 1 << 16
"""Bytes that a file may grow by being packed."""
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)

GRACE = 8.0
"""Seconds that a mirror may take to begin."""
SLOWEST = 32 << 10
"""Bytes a second, on average after that, below which a mirror is given up."""

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
            "not an IDX file of unsigned bytes\n"
            + expected_got("00 00 08 ..", content[:4].hex(" ") or "nothing")
        )
    start = 4 + 4 * content[3]
    sizes = struct.unpack(f">{content[3]}I", content[4:start])
    if math.prod(sizes) != len(content) - start:
        raise DataError(
            "an IDX file is cut short or too long\n"
            + expected_got(f"{math.prod(sizes)} bytes for {list(sizes)}", len(content) - start)
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes).copy()


def _contents(name: str) -> bytes:
    """The checked, decompressed bytes of one file."""
    folders = _folders()
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                with path.open("rb") as file:
                    return _checked(name, file, str(path))
    return _download(name, folders)


def _folders() -> list[Path]:
    folders: list[Path] = []
    if data := config.folder("data"):
        folders += [data, data / "mnist"]
    if cache := config.folder("cache"):
        folders.append(cache / "mnist")
    return folders


def _checked(name: str, file: BinaryIO, where: str) -> bytes:
    """The decompressed content of ``file``, read no further than MNIST's ``name`` goes."""
    most = LARGEST[name]
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    try:
        content = (gzip.GzipFile(fileobj=file) if packed else file).read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"a damaged .gz file: {error}", where=where, instead="delete it and try again"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if len(content) > most or digest != SHA256[name]:
        got = digest if len(content) <= most else f"more than {most} bytes"
        raise DataError(
            f"not MNIST's {name}: the SHA-256 of its decompressed bytes differs\n"
            + expected_got(SHA256[name], got),
            where=where,
            instead="delete the file; it is found elsewhere or downloaded again",
        )
    return content


# --- Downloading -------------------------------------------------------------------------------------


@dataclass
class Transfer:
    """One file on its way from a mirror, in a thread of its own: nothing else ends a read that drips."""

    address: str
    most: int
    received: bytearray = field(default_factory=bytearray)
    failure: Exception | None = None

    def run(self) -> bytes:
        """All bytes; whatever a mirror can do wrong raises, in a time in proportion to the file at most."""
        begun = time.monotonic()
        thread = threading.Thread(target=self._read, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
            spent, received = time.monotonic() - begun, len(self.received)
            if spent > GRACE + received / SLOWEST:
                self.most = 0  # ends the thread at its next read
                raise TimeoutError(f"{received} bytes in {spent:.0f} s")
        if self.failure is not None:
            raise self.failure
        return bytes(self.received)

    def _read(self) -> None:
        try:
            with urllib.request.urlopen(self.address, timeout=GRACE) as response:
                while part := response.read1(1 << 16):
                    self.received += part
                    if len(self.received) > self.most:
                        raise ValueError(f"more than {self.most} bytes")
                announced = response.headers.get("Content-Length")
                if announced is not None and int(announced) != len(self.received):
                    raise EOFError(f"{len(self.received)} of {announced} bytes")
        except Exception as error:
            self.failure = error


def _download(name: str, looked: list[Path]) -> bytes:
    failures = []
    for mirror in MIRRORS:
        address = f"{mirror}{name}.gz"
        try:
            packed = Transfer(address, LARGEST[name] + WRAPPING).run()
            content = _checked(name, io.BytesIO(packed), address)
        except Exception as error:  # whatever it is, the next mirror may do better
            failures.append(f"{address}: {(str(error) or type(error).__name__).splitlines()[0]}")
            continue
        _keep(looked[-1] / f"{name}.gz", packed)
        return content
    tried = "\n".join(f"              {place}" for place in [*map(str, looked), *failures])
    raise DataError(
        f"MNIST's file {name} (or {name}.gz) is missing and could not be downloaded",
        where=f"looked in\n{tried}",
        instead="put the four IDX files into a folder and set GNCOMPILE_DATA to it",
    )


def _keep(path: Path, packed: bytes) -> None:
    """Write to the cache; where that is not allowed, it is downloaded again the next time."""
    try:
        atomic_write(path, packed)
    except OSError as error:
        warnings.warn(f"{path} cannot be kept: {error}", stacklevel=2)
