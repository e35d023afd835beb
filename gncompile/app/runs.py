"""Commands on model files of either kind, data or equations, and on their run folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..frontends.model_file import load_model_file
from ..frontends.pde_file import describes_equations, load_pde_file
from .check_command import check_file
from .loaded_run import Run
from .loaded_run import load as load_run
from .pde_run import PdeRun, check_pde, compile_pde
from .run_folder import RunFolder
from .solved_run import SolvedRun
from .training_run import FolderRun, TrainingRun, compile_file

if TYPE_CHECKING:
    from ..training.trainer import Trainer


def start(model_file: Path, folder: Path | None, **asked: Any) -> FolderRun:
    """A fresh run, of data or of equations, as :meth:`FolderRun.start` makes it."""
    kind = PdeRun if describes_equations(model_file) else TrainingRun
    return kind.start(model_file, folder, **asked)


def go_on(folder: Path, *how: Any, **asked: Any) -> FolderRun:
    """A run as its last checkpoint left it: :meth:`FolderRun.resume`."""
    kind = PdeRun if describes_equations(RunFolder.open(folder).model_file) else TrainingRun
    return kind.resume(folder, *how, **asked)


def check(path: Path, data_root: Path | None = None) -> dict[str, str]:
    """What a model file describes: :func:`check_file`, or :func:`check_pde`."""
    return check_pde(path) if describes_equations(path) else check_file(path, data_root)


def load(
    path: str | os.PathLike[str], data_root: str | os.PathLike[str] | None = None
) -> Run | SolvedRun:
    """The model in the run folder ``path``, as ``gncompile train`` left it: of data or of equations.

    Neither the training data nor a compilation is needed. ``data_root`` goes before the folder of data that
    the run was started with. Raises :class:`~gncompile.errors.CheckpointError` for what is no run folder,
    or a damaged one.

    >>> run = load("runs/houses")  # doctest: +SKIP
    >>> run.predict("new.csv")["price"]  # doctest: +SKIP
    """
    folder = RunFolder.open(path)
    if describes_equations(folder.model_file):
        return SolvedRun.load(folder)
    return load_run(path, data_root)


def compiled(path: Path, data_root: Path | None = None) -> tuple[Trainer, str, int]:
    """The trainer of a model file, the file's name, and how many samples a step goes over."""
    if describes_equations(path):
        equations = load_pde_file(path)
        of_equations = compile_pde(equations)
        return of_equations, equations.name, len(of_equations.problem.batch().x)
    file = load_model_file(path, data_root=data_root)
    return compile_file(file), file.name, file.training.batch_size
