"""FACES: 25×25 pictures of the Olivetti faces, turned, scaled and shifted.

The 400 images of the file, 10 of each of 40 people, become ``10 · variants`` a person; people 1-25 are for
training and 31-40 for validation, as in Hinton and Salakhutdinov (2006), who made 103,500 and 41,400.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gncompile.base import config
from gncompile.data import DataSplit
from gncompile.errors import DataError

PEOPLE, EACH, SIDE, SIZE = 40, 10, 64, 25
TRAINING, VALIDATION = range(25), range(30, 40)
ANGLE = math.radians(90)  # Hinton and Salakhutdinov turn by up to 90° either way,
SCALES = (1.4, 1.8)  # and magnify by 1.4 to 1.8 before they subsample and crop


def faces(variants: int = 40, seed: int = 0) -> DataSplit:
    """Inputs that are their own targets, each standardised to mean 0 and standard deviation 1."""
    images = olivetti()
    train = _variants(images, TRAINING, variants, seed)
    held_out = _variants(images, VALIDATION, max(1, variants // 4), seed + 1)
    return DataSplit(train, train, held_out, held_out, (SIZE, SIZE))


def olivetti() -> Tensor:
    """All images, ``[40, 10, 64, 64]`` in [0, 1], from ``faces/olivettifaces.mat`` in ``GNCOMPILE_DATA``."""
    folder = config.folder("data")
    path = folder / "faces" / "olivettifaces.mat" if folder else None
    if path is None or not path.is_file():
        raise DataError(
            "the Olivetti faces are not on this machine",
            where=str(path or "GNCOMPILE_DATA is not set"),
            instead="put olivettifaces.mat into the folder faces below GNCOMPILE_DATA",
        )
    return torch.from_numpy(read_faces(path)).to(torch.float32) / 255


def read_faces(path: Path) -> np.ndarray:
    """The one matrix of bytes in a MATLAB 5 file, ``faces: [4096, 400]``, as images ``[40, 10, 64, 64]``.

    The format: a header of 128 bytes, then a compressed element, which is a matrix: elements with flags,
    sizes and name, each ``type, bytes, content`` padded to 8 bytes, and last the content by columns.
    """
    packed = path.read_bytes()
    try:
        matrix = zlib.decompress(packed[136:])[8:]
        start = 0
        for _ in range(3):  # flags, sizes, name
            (count,) = struct.unpack_from("<I", matrix, start + 4)
            start += 8 + -(-count // 8) * 8
        kind, count = struct.unpack_from("<2I", matrix, start)
        pixels = np.frombuffer(matrix, np.uint8, count, start + 8)
    except (zlib.error, struct.error, ValueError) as error:
        raise DataError(f"cannot read the MATLAB file: {error}", where=str(path)) from error
    if (kind, count) != (2, PEOPLE * EACH * SIDE * SIDE):
        raise DataError("not 400 images of 64×64 bytes", where=str(path))
    return pixels.reshape(PEOPLE, EACH, SIDE, SIDE).transpose(0, 1, 3, 2).copy()


def _variants(images: Tensor, people: range, variants: int, seed: int) -> Tensor:
    """``[people · 10 · variants, 625]``: every image under ``variants`` random similarity maps."""
    own = images[people.start : people.stop].reshape(-1, 1, SIDE, SIDE)
    own = own.repeat_interleave(variants, dim=0)
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(own), generator=generator)

    angle, scale = uniform(-ANGLE, ANGLE), uniform(*SCALES)
    # A point p of the crop shows the point R p / scale of the face: the middle 1/scale of the picture.
    rows = [
        torch.stack([angle.cos() / scale, -angle.sin() / scale, uniform(-0.1, 0.1)], dim=1),
        torch.stack([angle.sin() / scale, angle.cos() / scale, uniform(-0.1, 0.1)], dim=1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [len(own), 1, SIZE, SIZE], align_corners=False)
    # Averaging twice as finely as the crop needs keeps the subsampling free of aliases.
    smooth = F.avg_pool2d(own, 2)
    crops = F.grid_sample(smooth, grid, align_corners=False, padding_mode="border").flatten(1)
    centred = crops - crops.mean(dim=1, keepdim=True)
    return centred / centred.std(dim=1, keepdim=True)
