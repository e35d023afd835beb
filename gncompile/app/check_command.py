"""``gncompile check``: everything that can be known to be wrong with a model file before it trains."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.settings import Settings
from ..base.tables import binary_size, count
from ..errors import GncompileError, ModelFileError
from ..explain.readback import Readback
from ..frontends.model_data import load_data
from ..frontends.model_file import ModelFile, load_model_file
from ..losses.targets import tensors_of
from ..losses.vocabulary import resolve_loss
from ..training.metrics import resolve_metrics
from .compile_file import compile_file, trainer_options
from .device import CPU
from .output_bias import set_output_bias

if TYPE_CHECKING:
    import torch

    from ..training.trainer import Trainer

EXTRAS = {"metrics": ("sklearn", "metrics"), "tensorboard": ("tensorboard", "tensorboard")}
"""What needs a package: the package, and the extra that brings it."""

SOLVES = {
    "exact": "with all of G",
    "newton_cg": "by products with G",
    "block_hessian_free": "by products with blocks of G",
}
"""What a solver without a method solves with."""


def check_file(
    path: Path,
    data_root: Path | None = None,
    device: torch.device | str = CPU,
) -> dict[str, str]:
    """What a model file describes, by name, if it can be trained; nothing is trained or written.

    File, data, sizes, loss, options and memory are checked, and the training step is compiled. Raises
    :class:`~gncompile.errors.GncompileError` with all that is wrong, as far as none hides another.
    """
    file = load_model_file(path, data_root=data_root)
    mistakes = [
        *_mistakes(lambda: _check_options(file)),
        *_mistakes(lambda: _check_extras(file)),
        *_mistakes(lambda: load_data(file)),
    ]
    if not mistakes:
        return described(file, _compiled(file, device))
    raise ModelFileError("\n".join(mistakes))


def _mistakes(check: Callable[[], object]) -> list[str]:
    try:
        check()
    except GncompileError as error:
        return [str(error)]
    return []


def _check_options(file: ModelFile) -> None:
    options = trainer_options(file)
    for place in ("backend", "precision"):
        options.pop(place, None)
    try:
        Settings.of(**options)
    except GncompileError as error:
        raise ModelFileError(
            str(error), where=f"[training], and its options, of {file.path}"
        ) from None


def _check_extras(file: ModelFile) -> None:
    """Packages that the training would lack at its first validation."""
    asked = ["metrics"] if file.training.metrics else []
    asked += ["tensorboard"] if "tensorboard" in file.training.log else []
    for what in asked:
        package, extra = EXTRAS[what]
        if find_spec(package) is None:
            raise ModelFileError(
                f"{what} needs the package {package}, which is not installed",
                where=f"[training] of {file.path}",
                instead=f'pip install "gncompile[{extra}]", or leave {what} out',
            )


def _compiled(file: ModelFile, device: torch.device | str) -> Trainer:
    """The training step, with the settings of operations that need no measuring."""
    tune = file.training.tune
    tune = "cached" if tune in ("quick", "full") else tune
    trainer = compile_file(file, device=device, tune=tune)
    if file.training.output_bias == "mean":
        set_output_bias(file, trainer.model, file.split.train_y)
    resolve_metrics(file.training.metrics, trainer.compiled.loss)  # which the training would refuse
    return trainer


def described(file: ModelFile, trainer: Trainer) -> dict[str, str]:
    """A short summary, line by line."""
    data, schema, training = file.split, file.schema, file.training
    columns = [count(schema.inputs, "number")] if schema.inputs else []
    columns += [
        f"{column.name} ({count(column.size, 'level')})" for column in schema.categories[:5]
    ]
    more = len(schema.categories) - 5
    columns += [f"{more} more categories"] if more > 0 else []
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    length = (
        count(training.updates, "update")
        if training.updates
        else count(training.epochs or 0, "epoch")
    )
    solver, stops = trainer.settings.solver, training.early_stop
    factored = solver not in SOLVES or not trainer.settings.second_order
    length += f", or {stops.patience} validations without a better {stops.monitor}" if stops else ""
    return {
        "model": file.name,
        "data": Path(file.data.name).name,
        "samples": f"{_rows(data.train_x)} to train, {_rows(data.validation_x)} to validate",
        "inputs": ", ".join(columns) + (", standardised" if schema.standardise else ""),
        "outputs": _outputs(file),
        "network": " → ".join(str(size) for size in file.sizes.values()),
        "parameters": f"{parameters:,}",
        "loss": resolve_loss(file.loss).name,
        "method": f"{training.method}" if factored else f"{solver}, {SOLVES[solver]}",
        "steps": f"of {count(file.batch_size, 'sample')}, {length}",
        "memory": _memory(file, trainer),
    }


def _outputs(file: ModelFile) -> str:
    schema = file.schema
    if schema.target == "input":
        return "the inputs again"
    names = schema.output_names
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    if schema.target == "label":
        return f"{count(len(names), 'class', 'es')} of {schema.targets[0]}: {shown}"
    return f"{count(len(names), 'number')}: {shown}"


def _rows(x: Any) -> int:
    return len(tensors_of(x)[0])


def _memory(file: ModelFile, trainer: Trainer) -> str:
    """What a step holds, and the data."""
    compiled = trainer.compiled
    read = Readback(
        compiled.traced, compiled.loss, compiled.settings, compiled.program,
        file.batch_size, file.dtype.itemsize,
    )  # fmt: skip
    split = file.split
    parts = {
        id(tensor): tensor.nbytes
        for part in (split.train_x, split.train_y, split.validation_x, split.validation_y)
        for tensor in tensors_of(part)
    }
    return f"{read.memory_rows()[-1][1]}, and {binary_size(sum(parts.values()))} of data"
