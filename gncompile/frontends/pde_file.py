"""A model file with ``[pde]``: read, validated, and its network built."""

from __future__ import annotations

import os
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from ..functions.applied import Function
from ..functions.parsing import FUNCTIONS
from ..functions.transfer import called_by_name
from .declared_network import DeclaredNetwork
from .declared_nodes import check_all_read, check_names, sizes_of
from .model_file import declared_functions, declared_transfers, title
from .model_reading import read, tables_of, validate_as
from .network_memory import require_memory_for
from .network_schema import Layers, Node
from .pde_schema import Pde, PdeSections, PdeTraining


@dataclass(frozen=True)
class PdeFile:
    """A model file of a residual problem that makes sense; ``content`` is the file as it was read."""

    path: Path
    content: bytes
    sections: PdeSections
    functions: Mapping[str, Function]

    @property
    def name(self) -> str:
        """The model's name; by default the file's."""
        return title(self.sections.model, self.path)

    @property
    def pde(self) -> Pde:
        """The ``[pde]`` section."""
        return self.sections.pde

    @property
    def training(self) -> PdeTraining:
        """The ``[training]`` section."""
        return self.sections.training

    @property
    def dtype(self) -> torch.dtype:
        """The floating point type to train in."""
        return torch.float64 if self.training.dtype == "float64" else torch.float32

    @cached_property
    def nodes(self) -> Sequence[Node]:
        """The network's nodes, its sizes those of coordinates and outputs."""
        network = self.sections.network or Layers()
        return network.completed(len(self.pde.box), len(self.pde.outputs)).nodes()

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Features of the input and of every node."""
        return sizes_of(self.nodes, len(self.pde.box), self.path)

    def build(self, seed: int | None = None) -> DeclaredNetwork:
        """The network with fresh weights, drawn from ``seed`` (default: the file's).

        Raises :class:`~gncompile.errors.ModelFileError` where training it would not fit into memory.
        """
        require_memory_for(self)
        seed = self.training.seed if seed is None else seed
        size = len(self.pde.box)
        return DeclaredNetwork(size, self.nodes, self.functions, self.sizes, seed, self.dtype)


def describes_equations(path: str | os.PathLike[str]) -> bool:
    """Whether a model file has ``[pde]`` in place of data."""
    return "pde" in tables_of(read(Path(path)), Path(path))


def load_pde_file(path: str | os.PathLike[str]) -> PdeFile:
    """Read and check a model file with ``[pde]``; :class:`~gncompile.errors.ModelFileError` as for others.

    The equations are read where the problem is made (:mod:`gncompile.app.pde_run`).
    """
    path = Path(path)
    content = read(path)
    sections = validate_as(PdeSections, tables_of(content, path), path)
    transfers = declared_transfers(sections.transfer, path)
    known = ChainMap({n: called_by_name(f, n) for n, f in transfers.items()}, FUNCTIONS)
    network = sections.network or Layers()
    nodes = network.completed(len(sections.pde.box), len(sections.pde.outputs)).nodes()
    check_names(nodes, path)
    check_all_read(nodes, path)
    file = PdeFile(path, content, sections, declared_functions(nodes, known, path))
    _ = file.sizes
    return file
