"""``gncompile.load`` of a run folder with data: the folder as a model.

A folder may be a stranger's. Model file, records, schema and weights are data, read within bounds and held
against each other; nothing in them is executed, and nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..data.data_sets import DataSplit
from ..data.data_split import read_rows
from ..data.table import Table
from ..data.table_schema import TableSchema
from ..errors import CheckpointError, DataError, expected_got
from ..frontends.model_data import load_data
from ..frontends.model_file import ModelFile, load_model_file
from ..losses.targets import mapped
from ..losses.vocabulary import Loss, resolve_loss
from ..losses.weighting import bind_loss
from ..training.metrics import usual_metrics
from .device import CPU
from .evaluation import device_of_module, evaluated, outputs_of, predicted
from .run_folder import RunFolder
from .started import Started

if TYPE_CHECKING:
    from ..training.trainer import Trainer

Rows = str | os.PathLike[str] | Table | Mapping[str, Any]
"""Rows to predict: a file, a table that was read of one, or columns by name."""
Tensors = Tensor | tuple[Tensor, ...]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass
class Run:
    """A run folder, read: the network with the weights that its report describes, and its data's schema."""

    folder: RunFolder
    started: Started
    file: ModelFile
    module: nn.Module
    """A plain torch module; of a run that has not ended, with the weights of the last checkpoint.

    It may be moved, ``run.module.to("cuda")``: what is asked of the run is then computed there."""

    @property
    def schema(self) -> TableSchema:
        """Which columns go in and come out."""
        return self.file.schema

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the model file's metrics, or of the usual ones for its targets."""
        return self.file.training.metrics or usual_metrics(self.schema.target, self.loss)

    @cached_property
    def trainer(self) -> Trainer:
        """The trainer as the run's last checkpoint left it, compiled when first asked for.

        It has a network of its own: going on with it leaves :attr:`module` as the report describes it.
        """
        from ..training.trainer import Trainer

        model = self.file.build(self.started.seed).to(device_of_module(self.module))
        return Trainer.resume(self.folder.checkpoint, model)

    @cached_property
    def loss(self) -> Loss:
        """The loss of the network's outputs."""
        return bind_loss(resolve_loss(self.file.loss), (self.file.output_size,))

    def predict(self, data: Rows | Tensors | Array) -> dict[str, Array]:
        """Columns that the network predicts for each row, in the rows' order and the file's units.

        Of classes these are the likeliest one, by name, and ``probability_CLASS`` of each. ``data`` are rows,
        of which the columns that go in are enough, or the network's inputs as tensors or an array. Raises
        :class:`~gncompile.errors.DataError` for rows that do not fit, by row and column.
        """
        outputs = outputs_of(self.module, self.encode(data))
        return self.schema.decode(outputs if self.schema.classes else predicted(self.loss, outputs))

    def encode(self, data: Rows | Tensors | Array) -> Any:
        """What :attr:`module` takes for ``data``, in its dtype: ``run.module(run.encode("new.csv"))``.

        A tensor, or where there are categories two, ``run.module(*run.encode(…))``. ``data``, and what is
        raised, are as for :meth:`predict`.
        """
        if isinstance(data, np.ndarray):
            data = torch.as_tensor(data, dtype=self.file.dtype)
        if isinstance(data, Tensor | tuple):
            return self._cast(self._inputs(data))
        return self._cast(self.schema.encode(self._table(data, targets=False)))

    def evaluate(
        self,
        data: Rows | tuple[Tensors | Array, Any] | None = None,
        metrics: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """``{"loss": …}`` with ``metrics``, by default :attr:`metrics`, on all rows of ``data``.

        ``data`` are rows with targets, or tensors or arrays ``(x, y)``; by default the run's own validation
        data.
        """
        if data is None:
            validation = self.data().validation
            if validation is None:
                raise DataError(
                    "the run has no validation data",
                    where=str(self.folder.path),
                    instead="give the data to evaluate on: a file, or (x, y)",
                )
            x, y = validation
        elif isinstance(data, tuple):
            x, y = mapped(torch.as_tensor, data)
            x = self._inputs(x)
        else:
            table = self._table(data, targets=True)
            x = self.schema.encode(table)
            y = x if self.schema.target == "input" else self.schema.targets_of(table)
        metrics = self.metrics if metrics is None else metrics
        return evaluated(self.module, self.loss, self._cast(x), self._cast(y), metrics)

    def data(self) -> DataSplit:
        """The data that the run was started with; :class:`~gncompile.errors.CheckpointError` for others."""
        data = load_data(self.file)
        if data.digest() != self.started.data:
            raise CheckpointError(
                "the data are not those that the run was started with",
                where=f"{self.file.data.name}, which {self.folder.path} names",
                instead="put them back, or start a new run",
            )
        return data

    def _inputs(self, x: Tensors) -> Tensors:
        """The network's inputs, which are as wide as the schema says."""
        numbers = x[0] if isinstance(x, tuple) else x
        if numbers.dim() != 2 or numbers.shape[1] != self.schema.inputs:
            raise DataError(
                "the inputs do not fit the network\n"
                + expected_got(f"[N, {self.schema.inputs}]", str(list(numbers.shape))),
                instead="give a row for each sample, the columns in the order of run.schema",
            )
        return x

    def _table(self, data: Rows, targets: bool) -> Table:
        """Rows of a file, or columns by name."""
        if isinstance(data, Table):
            return data
        if not isinstance(data, str | os.PathLike | Mapping):
            raise DataError(
                f"the data is of type {type(data).__name__}",
                instead="give a file's path, columns by name (of a data frame: dict(frame)), or the "
                "network's inputs as tensors, the columns in the order of run.schema",
            )
        if not isinstance(data, Mapping):
            return read_rows(os.fspath(data), self.schema, targets)
        columns = {name: np.asarray(column) for name, column in data.items()}
        lengths = sorted({len(column) for column in columns.values()})
        if len(lengths) != 1:
            raise DataError(f"columns of {lengths or 'no'} rows", where="the given data")
        texts = {
            name: column.astype(object)
            for name, column in columns.items()
            if column.dtype.kind == "U"
        }
        return Table(columns | texts, "the given data", np.arange(lengths[0]), "index")

    def _cast(self, tensors: Any) -> Any:
        """Numbers in the network's dtype; whole numbers, as of classes, stay so."""

        def cast(tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor
            given = tensor.to(self.file.dtype)
            if not torch.isfinite(given).all():
                row = int((~torch.isfinite(given)).nonzero()[0][0])
                raise DataError(
                    f"a number that is not finite in {self.file.dtype}", where=f"row {row}"
                )
            return given

        return mapped(cast, tensors)

    def __repr__(self) -> str:
        return f"Run({str(self.folder.path)!r}, {self.file.name!r})"


def load(
    path: str | os.PathLike[str],
    data_root: str | os.PathLike[str] | None = None,
    device: torch.device | str = CPU,
) -> Run:
    """The model in the run folder ``path``, one with data; see :func:`gncompile.load`."""
    folder = RunFolder.open(path)
    started = Started.of(folder)
    root = started.data_root if data_root is None else data_root
    file = load_model_file(folder.model_file, started.base, root, folder.schema)
    _require_sizes(file, folder)
    module = file.build(started.seed)
    give_learnt(module, folder, started)
    return Run(folder, started, file, module.eval().to(device))


def _require_sizes(file: ModelFile, folder: RunFolder) -> None:
    """The network is for data of this schema, whose sizes are then bounded as the network's are."""
    pairs = [(file.inputs_wanted, file.input_size), (file.schema.outputs, file.output_size)]
    binary = file.schema.outputs == 2 and file.output_size == 1  # the log odds of two classes
    for what, (wanted, size) in zip(("inputs", "outputs"), pairs, strict=True):
        if wanted != size and not (binary and what == "outputs"):
            raise CheckpointError(
                f"the network does not fit data.json\n{expected_got(f'{wanted} {what}', size)}",
                where=str(folder.path),
                instead="take a folder as gncompile train wrote it",
            )


def give_learnt(module: nn.Module, folder: RunFolder, started: Started) -> None:
    """Load the weights that the report speaks of, or of a run that goes on those of its last checkpoint."""
    if started.ended and folder.weights.exists():
        _give(module, _read_weights(folder.weights, module), folder.weights)
    else:
        from ..training.checkpoint import load as load_checkpoint

        _give(module, load_checkpoint(folder.checkpoint).state["model"], folder.checkpoint)


def _read_weights(path: Path, module: nn.Module) -> dict[str, Tensor]:
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


def _give(module: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
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
