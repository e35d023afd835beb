"""Commands on model files of either kind, data or equations, and on their run folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..frontends.pde_file import describes_equations
from .check_command import check_file
from .pde_run import PdeRun, check_pde
from .run_folder import RunFolder
from .training_run import FolderRun, TrainingRun


def start(model_file: Path, folder: Path | None, **asked: Any) -> FolderRun:
    """A fresh run: :meth:`TrainingRun.start`, or of a file with ``[pde]`` :meth:`PdeRun.start`."""
    kind = PdeRun if describes_equations(model_file) else TrainingRun
    return kind.start(model_file, folder, **asked)


def go_on(folder: Path, *how: Any, **asked: Any) -> FolderRun:
    """A run as its last checkpoint left it: :meth:`TrainingRun.resume`, or :meth:`PdeRun.resume`."""
    kind = PdeRun if describes_equations(RunFolder.open(folder).model_file) else TrainingRun
    return kind.resume(folder, *how, **asked)


def check(path: Path, data_root: Path | None = None) -> dict[str, str]:
    """What a model file describes: :func:`check_file`, or :func:`check_pde`."""
    return check_pde(path) if describes_equations(path) else check_file(path, data_root)
