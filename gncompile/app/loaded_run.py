"""``gncompile.load``: a run folder as a model.

A folder may be a stranger's. Model file, records, schema and weights are data, read within bounds and held
against each other; nothing in them is executed, and nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..frontends.model_file import ModelFile, load_model_file
from ..losses.vocabulary import Loss, resolve_loss
from ..losses.weighting import bind_loss
from .run_folder import RunFolder
from .started import Started

if TYPE_CHECKING:
    from ..training.trainer import Trainer


@dataclass
class Run:
    """A run folder, read: its network with the weights that its report describes, and what they were made of."""

    folder: RunFolder
    started: Started
    file: ModelFile
    module: nn.Module
    """A plain torch module; after a run that has not ended it holds the weights of the last checkpoint."""

    @cached_property
    def trainer(self) -> Trainer:
        """The trainer as the run's last checkpoint left it, compiled when first asked for.

        It has a network of its own: going on with it leaves :attr:`module` as the report describes it.
        """
        from ..training.trainer import Trainer

        return Trainer.resume(self.folder.checkpoint, self.file.build(self.started.seed))

    @property
    def loss(self) -> Loss:
        """The loss of the network's outputs."""
        outputs = self.file.sizes[self.file.sections.network.node[-1].name]
        return bind_loss(resolve_loss(self.file.loss), (outputs,))

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r}, {self.file.name!r})"


def load(path: str | os.PathLike[str], data_root: str | os.PathLike[str] | None = None) -> Run:
    """The model in the run folder ``path``, as ``gncompile train`` left it.

    Neither the training data nor a compilation is needed. Raises
    :class:`~gncompile.errors.CheckpointError` for what is no run folder, or a damaged one.
    """
    folder = RunFolder.open(path)
    started = Started.of(folder)
    root = started.data_root if data_root is None else data_root
    file = load_model_file(folder.model_file, started.base, root)
    module = file.build(started.seed)
    if started.ended and folder.weights.exists():
        give(module, read_weights(folder.weights, module), folder.weights)
    else:
        from ..training.checkpoint import load as load_checkpoint

        state = load_checkpoint(folder.checkpoint).state
        give(module, state["model"], folder.checkpoint)
    return Run(folder, started, file, module)


def read_weights(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a weights file that are the module's, which bounds what is read."""
    from safetensors import SafetensorError, safe_open

    expected = module.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            if names != set(expected):
                odd = sorted(names ^ set(expected))[0]
                raise ValueError(f"{odd[:200]!r} is in only one of them")
            for name, tensor in expected.items():
                if file.get_slice(name).get_shape() != list(tensor.shape):
                    raise ValueError(f"{name} has another shape")
            return {name: file.get_tensor(name) for name in expected}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unfit(path, str(error)) from error


def give(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load the weights; :class:`~gncompile.errors.CheckpointError` where they are another network's."""
    expected = module.state_dict()
    for name, tensor in expected.items():
        found = weights.get(name)
        if found is None or (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
            raise _unfit(path, f"{name} is missing, or of another shape or dtype")
    module.load_state_dict({name: weights[name] for name in expected})


def _unfit(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        f"the weights are not those of the model file: {found}",
        where=str(path),
        instead="take a folder as gncompile train wrote it, or start the run again",
    )
