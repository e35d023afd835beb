"""The same comparison on a user's model file: what ``gncompile compare`` does."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from ...base.files import atomic_write
from ...base.settings import Settings
from ...base.untrusted import is_plain_file
from ...errors import CompileError, ModelFileError
from ...frontends.model_data import load_data
from ...frontends.model_file import ModelFile, load_model_file
from ...graph.torch_network import objective
from ...losses.vocabulary import resolve_loss
from ..compile_file import trainer_options
from ..output_bias import set_output_bias
from .contest import Contest
from .optimisers import named
from .report import write_report
from .running import Budget
from .task import Task


def compare(
    given: Path | ModelFile,
    optimisers: Sequence[str],
    folder: Path,
    budget: Budget,
    seeds: int = 1,
    search: bool = True,
    report: Callable[[str], None] = print,
) -> str:
    """Train a model file with each of ``optimisers`` (names in :mod:`.optimisers`); returns the tables.

    Each is trained at ``seeds`` seeds, the file's own and those after it, under the same ``budget``; settings
    of optimisers that are not ours are searched on their grid unless ``search`` is False. Runs, tables,
    pictures and JSON go to ``folder``; runs that are there already, under the same budget, are taken from
    it. Where none was made, what has been written is removed. Raises
    :class:`~gncompile.errors.CompileError` for an unknown optimiser and where no optimiser could be started,
    and whatever the model file or its data may raise.
    """
    contestants = named(optimisers)
    file = given if isinstance(given, ModelFile) else load_model_file(given)
    task = task_of(file)
    first = file.training.seed
    own = range(first, first + seeds)
    contest = Contest(folder / "runs", budget, own, search=search, report=report)
    with _claimed(folder, file):
        runs = contest.hold(task, contestants)
        if all(run.status in ("failed", "not run") for run in runs):
            raise CompileError(
                "no optimiser could be started",
                where=f"{runs[0].optimiser}: {runs[0].note}",
                instead="change the model file, or compare others",
            )
    return write_report(folder, file.name, runs, contest.machine)


@contextmanager
def _claimed(folder: Path, file: ModelFile) -> Iterator[None]:
    """Keep the model file in the folder, whose runs must not be mixed with those of another one.

    Where the block fails before any run was made, nothing is left that would be in the way of the next try.
    """
    kept = folder / "model.toml"
    there = os.path.lexists(kept)
    if there and not (is_plain_file(kept) and kept.read_bytes() == file.content):
        raise ModelFileError(
            f"the folder {str(folder)!r} holds runs of another model file, or of this one as it was",
            instead="delete it, or choose another one with --out",
        )
    made = not folder.exists()
    atomic_write(kept, file.content)
    try:
        yield
    except BaseException:
        if not there and not any((folder / "runs").glob("*/*.jsonl")):
            kept.unlink()
            if made:
                folder.rmdir()
        raise


def task_of(file: ModelFile) -> Task:
    """The network, loss and data of a model file; its method is left to the contestants."""
    data, options = load_data(file), trainer_options(file)
    options.pop("method", None)
    settings = Settings.of(**options)
    if data.validation is None:
        raise ModelFileError(
            "a comparison needs validation data, and validation = 0 leaves none",
            where=f"[data] of {file.path}",
            instead="hold samples out: validation = 0.1",
        )

    def build(seed: int) -> nn.Module:
        model = file.build(seed)
        if file.training.output_bias == "mean":
            set_output_bias(file, model, data.train_y)
        return model

    declared = resolve_loss(file.loss)
    return Task(
        file.name,
        build,
        declared,
        objective(declared, None),
        data,
        file.training.batch_size,
        options,
        settings.l2_of,
    )
