"""The CURVES images, drawn rather than stored."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

SIDE = 28
STROKE = 0.8  # standard deviation of the pen, in pixels
STEPS = 64  # pen positions along a curve; the longest curve moves less than one STROKE between two
_STREAMS = {"train": 0, "validation": 1}


def curves(count: int, seed: int = 0, split: Literal["train", "validation"] = "train") -> Array:
    """CURVES: ``[count, 784]`` float32 grey images in [0, 1] of smooth curves through three random points.

    The points' x-coordinates lie one in each third of the width, their y-coordinates anywhere inside the
    margin, which makes six degrees of freedom. The curve is the parabola ``c(t)`` through them at
    t = 0, ½, 1. A pixel p is the ink of a Gaussian pen drawn along it, clipped at 1::

        min(1, ∫ exp(-|p - c(t)|² / 2s²) |c'(t)| dt / (s √(2π)))

    and rounded to 256 grey levels. The first images of a longer set are those of a shorter one.
    After Hinton, Salakhutdinov, *Reducing the dimensionality of data with neural networks*, 2006.
    """
    stream = np.random.SeedSequence([seed, _STREAMS[split]])
    points = np.random.Generator(np.random.PCG64(stream)).random((count, 3, 2))
    images = np.empty((count, SIDE * SIDE), dtype=np.float32)
    for start in range(0, count, 1000):  # bounds memory
        images[start : start + 1000] = _draw(points[start : start + 1000])
    return images


def _draw(points: Array) -> Array:
    """Images ``[n, 784]`` of the curves through ``points: [n, 3, 2]``, uniform in the unit square."""
    # A parabola through three values of [0, 1] stays within [-⅛, 1⅛]: the margin holds that and the pen.
    margin = 5.0
    width = SIDE - 1 - 2 * margin
    x = margin + width * (np.arange(3) + points[:, :, 0]) / 3
    y = margin + width * points[:, :, 1]
    t = (np.arange(STEPS) + 0.5) / STEPS
    at_nodes = np.stack([(1 - t) * (1 - 2 * t), 4 * t * (1 - t), t * (2 * t - 1)])  # Lagrange basis
    slopes = np.stack([4 * t - 3, 4 - 8 * t, 4 * t - 1])
    speed = np.hypot(x @ slopes, y @ slopes) / (STEPS * STROKE * math.sqrt(2 * math.pi))
    # exp(-|p - c|²/2s²) is a product of a row and a column factor, so the integral is a matrix product.
    rows, columns = _pen(y @ at_nodes), _pen(x @ at_nodes)
    ink = (rows * speed[:, :, None]).transpose(0, 2, 1) @ columns
    # Double precision before rounding to grey levels: the images are the same with every BLAS.
    grey = np.rint(255 * np.minimum(ink, 1)).astype(np.float32) / 255
    return grey.reshape(len(points), SIDE * SIDE)


def _pen(positions: Array) -> Array:
    """``exp(-(p - c)²/2s²)`` for centres ``positions: [n, steps]`` and pixels p: ``[n, steps, 28]``."""
    distance = positions[:, :, None] - np.arange(SIDE)
    return np.exp(distance**2 * (-0.5 / STROKE**2))
