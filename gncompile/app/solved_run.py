"""``gncompile.load`` of a run folder of equations: the problem, with the network that solves it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.data_split import read_columns
from ..errors import DataError
from ..frontends.pde_file import PdeFile, load_pde_file
from .loaded_run import Array, give_learnt
from .pde_run import problem_of, reference_error
from .residual_terms import Values
from .residual_trainer import ResidualTrainer
from .residuals import Problem
from .run_folder import RunFolder
from .started import Started

Places = str | os.PathLike[str] | Mapping[str, Any] | Tensor | Array
"""Points: a table or columns with the coordinates' names, or ``[n, d]`` in the order of the box."""


@dataclass
class SolvedRun:
    """A run folder of a model file with ``[pde]``, read."""

    folder: RunFolder
    started: Started
    file: PdeFile
    problem: Problem
    """The equations, and the network with the weights of the report, or of the last checkpoint."""

    @classmethod
    def load(cls, folder: RunFolder, device: torch.device) -> SolvedRun:
        """The run as ``gncompile train`` left it, its network on a device; nothing is compiled."""
        started = Started.of(folder)
        file = load_pde_file(folder.model_file)
        problem = problem_of(file, file.build(started.seed).to(device))
        give_learnt(problem.network, folder, started)
        return cls(folder, started, file, problem)

    @property
    def module(self) -> nn.Module:
        """The network, a plain torch module: outputs ``[n, K]`` of points ``[n, d]``."""
        return self.problem.net

    @cached_property
    def trainer(self) -> ResidualTrainer:
        """The trainer as the run's last checkpoint left it, compiled when first asked for.

        It has a network of its own: going on with it leaves :attr:`module` as the report describes it.
        """
        net = self.file.build(self.started.seed).to(self.problem.sampling.device)
        problem = problem_of(self.file, net)
        return problem.resume(self.folder.checkpoint)

    def predict(self, points: Places, names: Sequence[str] | None = None) -> dict[str, Array]:
        """The outputs at points, ``[n]`` each, or what ``names`` asks for, as :meth:`Problem.evaluate` does.

        ``points`` are a table's path or columns by name, with the coordinates among them, or ``[n, d]`` with
        the coordinates in the order of the box.
        """
        found = self.problem.evaluate(self._points(points), names)
        return {name: value.cpu().numpy() for name, value in found.items()}

    def evaluate(
        self, data: str | os.PathLike[str] | None = None, metrics: Sequence[str] | None = None
    ) -> dict[str, float]:
        """``E_t`` of every term on the points of the training's begin, unknowns, and ``relative_l2``.

        That is the error against the model file's reference, if it has one; of ``data``, a table with
        coordinates and outputs, it is the one thing told, against the table's outputs.
        """
        if metrics:
            raise DataError(
                f"the metrics {', '.join(metrics)} of a run of equations",
                where=str(self.folder.path),
                instead="leave them out: the terms, the unknowns and the relative L2 error are told",
            )
        problem = self.problem
        if data is not None:
            wanted = read_columns(os.fspath(data), problem.names.outputs, "the outputs")
            return {"relative_l2": problem.relative_l2(wanted, self._points(data))}
        told = {**problem.energies(seed=self.started.seed), **problem.unknowns}
        error = reference_error(problem, self.file)
        return told if error is None else {**told, "relative_l2": error}

    def _points(self, points: Places) -> Values:
        names = self.problem.names.inputs
        if isinstance(points, Mapping):
            if missing := [name for name in names if name not in points]:
                raise DataError(
                    f"there is no column {', '.join(missing)}",
                    where="the given points",
                    instead=f"the coordinates are {', '.join(names)}",
                )
            points = np.stack([np.asarray(points[name], dtype=float) for name in names], axis=1)
        elif isinstance(points, str | os.PathLike):
            points = read_columns(os.fspath(points), names, "the coordinates")
        return points

    def __repr__(self) -> str:
        return f"SolvedRun({str(self.folder.path)!r}, {self.file.name!r})"
