"""Commands that train: one process, or the several that ``torchrun`` has started, into one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import visible
from .device import CPU, Device, device_of
from .interrupts import Stopped
from .launched import TIMEOUT, Launch, together
from .run_commands import RunPath

if TYPE_CHECKING:
    from .training_run import FolderRun

ModelPath = Annotated[Path, typer.Argument(metavar="FILE", help="A TOML model file.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        exists=True,
        file_okay=False,
        help="Files named in FILE may lie in DIR, too; else beside FILE only.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Timeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds after which a process that hangs ends all.")
]


def train(
    file: ModelPath,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Updates to make.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs to make.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of weights and order.")] = None,
    method: Annotated[str | None, typer.Option(help="Curvature method, as kfra.")] = None,
    checkpoint_every: Annotated[int, typer.Option(min=1, help="Updates between checkpoints.")] = 20,
    device: Device = CPU,
    timeout: Timeout = TIMEOUT,
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Train a model file and write a run folder; also under torchrun, on several processes."""
    from .runs import go_on, start

    if updates is not None and epochs is not None:
        raise typer.BadParameter("give --updates or --epochs, not both")
    asked = {"updates": updates, "epochs": epochs, "seed": seed, "method": method}
    with together(timeout, device_of(device)) as launch:
        if launch and (left := _left_behind(launch, file, out, asked)):
            run = go_on(left, not quiet, data_root, device=device)
            if launch.leads:
                _print(f"goes on with {left}, after {run.trainer.updates} updates")
        else:
            run = start(
                file,
                out,
                **asked,
                device=device,
                checkpoint_every=checkpoint_every,
                progress=not quiet,
                data_root=data_root,
            )
        _finish(run)


def resume(
    run: RunPath,
    updates: Annotated[int | None, typer.Option(min=1, help="Updates to make now.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs to make now.")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="As of train; default the run's own.")
    ] = None,
    timeout: Timeout = TIMEOUT,
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Go on with a training from its last checkpoint, to its end, or for some updates more.

    The end that was meant stays, unless these updates lead beyond it.
    """
    from .runs import go_on, trained_on

    if updates is not None and epochs is not None:
        raise typer.BadParameter("give --updates or --epochs, not both")
    device = device or trained_on(run)
    with together(timeout, device_of(device)):
        resumed = go_on(run, not quiet, data_root, updates=updates, epochs=epochs, device=device)
        if (ended := resumed.started.ended) and resumed.leads:
            _print(f"ended before: {ended}; for more: gncompile resume {run} --updates N")
        _finish(resumed)


def _left_behind(
    launch: Launch, file: Path, out: Path | None, asked: dict[str, int | str | None]
) -> Path | None:
    """The run that an attempt of the same command has left, as the first process finds it."""
    from ..runtime.first_process import from_first
    from ..runtime.processes import current
    from .left_behind import left_behind

    return from_first(current(), lambda: left_behind(file, out, asked, launch.restarts > 0))


def _finish(run: FolderRun) -> None:
    """Train, and say where the results are or how to go on."""
    code, folder = 0, run.folder.path
    try:
        run.train()
    except Stopped:
        code = 130
    if code or not run.started.ended:
        if run.leads:
            made = f"stopped after {run.trainer.updates} updates"
            _print(f"{made}; go on with: gncompile resume {folder}")
        raise typer.Exit(code)
    if run.leads:
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("."):
                _print(str(path))


def _print(text: str) -> None:
    typer.echo(visible(text))
