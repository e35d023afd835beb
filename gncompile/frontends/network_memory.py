"""The memory that a model file's network takes at least, from its declared sizes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from ..base.memory_budget import require_memory
from ..base.settings import FIRST_ORDER_METHODS
from ..errors import ModelFileError
from .network_schema import Linear, Node


class Declared(Protocol):
    """What is asked of a model file."""

    @property
    def path(self) -> Path: ...
    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def training(self) -> Any: ...
    @property
    def nodes(self) -> Sequence[Node]: ...
    @property
    def sizes(self) -> Mapping[str, int]: ...


TRACED = 2
"""Samples that the network is traced with."""


def require_memory_for(file: Declared) -> None:
    """Raise :class:`~gncompile.errors.ModelFileError` where there is less than the network takes at least.

    Counted are what stands between reading the file and the program, which counts for itself: the weights
    with their gradient, the draw of the largest in float64, for second-order methods the two factors of every
    layer and their inverses, ``2 (a² + b²)`` numbers, and all values of :data:`TRACED` samples.
    """
    size = file.dtype.itemsize
    layers = list(_layers(file))
    weights = {name: a * b for name, a, b in layers}
    needed = {f"weights of {name}": 2 * size * count for name, count in weights.items()}
    needed["the draw of the largest weights"] = 8 * max(weights.values(), default=0)
    if file.training.method not in FIRST_ORDER_METHODS:
        needed |= {f"factors of {name}": 2 * size * (a**2 + b**2) for name, a, b in layers}
    for name, features in file.sizes.items():
        needed[f"values of {name}"] = TRACED * size * features
    require_memory(
        needed,
        f"the network of {file.name!r} and its states",
        where=f"[network] of {file.path}",
        instead="declare smaller layers, or use a machine with more memory",
        error=ModelFileError,
    )


def _layers(file: Declared) -> Iterable[tuple[str, int, int]]:
    """Name, inputs (the bias's one included) and outputs of every affine layer."""
    for node in file.nodes:
        if isinstance(node, Linear):
            yield node.name, file.sizes[node.inputs[0]] + node.bias, node.size
