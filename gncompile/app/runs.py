"""Commands on model files of either kind, data or equations, and on their run folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..frontends.model_file import load_model_file
from ..frontends.pde_file import describes_equations, load_pde_file
from .check_command import check_file
from .compile_file import compile_file
from .device import CPU, device_of
from .loaded_run import Run
from .loaded_run import load as load_run
from .pde_run import PdeRun, check_pde, compile_pde
from .run_folder import RunFolder
from .solved_run import SolvedRun
from .started import Started
from .training_run import FolderRun, TrainingRun

if TYPE_CHECKING:
    import torch

    from ..training.trainer import Trainer


def start(model_file: Path, folder: Path | None, **asked: Any) -> FolderRun:
    """A fresh run, of data or of equations, as :meth:`FolderRun.start` makes it."""
    kind = PdeRun if describes_equations(model_file) else TrainingRun
    return kind.start(model_file, folder, **asked)


def go_on(folder: Path, *how: Any, **asked: Any) -> FolderRun:
    """A run as its last checkpoint left it: :meth:`FolderRun.resume`."""
    kind = PdeRun if describes_equations(RunFolder.open(folder).model_file) else TrainingRun
    return kind.resume(folder, *how, **asked)


def trained_on(folder: Path) -> str:
    """The device that a run was trained on last, as ``--device`` takes it."""
    return Started.of(RunFolder.open(folder)).device


def check(path: Path, data_root: Path | None = None, device: str = CPU) -> dict[str, str]:
    """What a model file describes: :func:`check_file`, or :func:`check_pde`."""
    place = device_of(device)
    if describes_equations(path):
        return check_pde(path, place)
    return check_file(path, data_root, place)


def load(
    path: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    device: str | torch.device = CPU,
) -> Run | SolvedRun:
    """The model in the run folder ``path``, as ``gncompile train`` left it: of data or of equations.

    Neither the training data nor a compilation is needed. ``data_root`` goes before the folder of data that
    the run was started with. ``device``, ``"cuda"`` say, is where its network is, wherever it was trained;
    rows go in, and predictions come out, on the host. Raises :class:`~gncompile.errors.CheckpointError` for
    what is no run folder, or a damaged one.

    >>> run = load("runs/houses")  # doctest: +SKIP
    >>> run.predict("new.csv")["price"]  # doctest: +SKIP
    """
    folder, place = RunFolder.open(path), device_of(str(device))
    if describes_equations(folder.model_file):
        return SolvedRun.load(folder, place)
    return load_run(path, data_root, place)


def compiled(
    path: Path, data_root: Path | None = None, device: str = CPU
) -> tuple[Trainer, str, int]:
    """The trainer of a model file, the file's name, and how many samples a step goes over."""
    place = device_of(device)
    if describes_equations(path):
        equations = load_pde_file(path)
        of_equations = compile_pde(equations, device=place)
        return of_equations, equations.name, len(of_equations.problem.batch().x)
    file = load_model_file(path, data_root=data_root)
    return compile_file(file, device=place), file.name, file.training.batch_size
