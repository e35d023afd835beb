"""The command line: a thin shell around the library.

Exit codes: 0 done, 1 an error of the model, the data or the machine, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..errors import GncompileError, InternalError, visible
from .command_errors import explained
from .command_list import Commands
from .device import CPU, Device
from .interrupts import sigterm_interrupts, was_interrupt
from .launched import JOINING, Launch, recorded
from .run_commands import evaluate, predict
from .train_commands import DataRoot, ModelPath, Quiet, resume, train

if TYPE_CHECKING:
    from ..functions.transfer import TransferFunction

YOUNG = 100_000
"""Objects made between two searches for garbage; a process begins with millions that stay, its imports."""

app = typer.Typer(
    cls=Commands,
    help="Compile a feedforward network and a loss into a second-order trainer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; whatever goes wrong is printed as text, without a traceback."""
    gc.set_threshold(YOUNG)
    try:
        with warnings.catch_warnings(), sigterm_interrupts():
            warnings.showwarning = _warn  # type: ignore[assignment]
            recorded(app)(arguments, prog_name="gncompile")
    except (KeyboardInterrupt, SystemExit) as stop:
        if not was_interrupt(stop):
            raise
        _complain("interrupted")
        return 130
    except Exception as error:
        if isinstance(error, GncompileError):
            label = "internal error" if isinstance(error, InternalError) else "error"
            _complain(f"{label}: {error}")
        else:
            _complain(explained(error))
        for note in getattr(error, "__notes__", ()):
            _complain(note)
        return 1
    return 0


def _complain(text: str) -> None:
    launch, errors = Launch.now(), Console(stderr=True)
    who = f"process {launch.rank} of {launch.size}: " if launch and launch.size > 1 else ""
    errors.print(visible(who + text), markup=False, highlight=False, soft_wrap=True)


def _warn(warning: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
    """A warning as text; Python's own are about code, which is none of the command line's user's."""
    launch = Launch.now()
    if issubclass(category, UserWarning) and (launch is None or launch.leads):
        _complain(f"warning: {warning}")


def _version(asked: bool) -> None:
    if asked:
        from ..base.version import __version__

        _print(f"gncompile {__version__}")
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Compile a feedforward network and a loss into a second-order trainer."""
    launch = Launch.now()
    if launch and not launch.leads and context.invoked_subcommand not in JOINING:
        raise typer.Exit  # the first process does it


app.command()(train)
app.command()(resume)
app.command()(predict)
app.command()(evaluate)


@app.command()
def init(
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A .csv, .parquet, .arrow or .npz file.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Model file; default beside DATA.")
    ] = None,
    target: Annotated[str | None, typer.Option(metavar="NAME", help="Column to predict.")] = None,
) -> None:
    """Write a model file for a data file, with comments on what was guessed."""
    from .init_command import init_file

    _print(str(init_file(data, out, target)))


@app.command()
def check(file: ModelPath, data_root: DataRoot = None, device: Device = CPU) -> None:
    """Say what a model file describes and needs, or list all that is wrong; trains nothing."""
    from ..base.environment import table
    from .runs import check

    _print(table(check(file, data_root, device)))


@app.command()
def explain(
    file: ModelPath,
    layer: Annotated[str | None, typer.Option(help="One layer only, by its name.")] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write linked HTML pages instead.")
    ] = None,
    latex: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a LaTeX article instead.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = CPU,
) -> None:
    """Print what is derived and compiled for a model file, or write it as a report."""
    from .predict_command import require_other
    from .runs import compiled

    if layer is not None and (html or latex):
        raise typer.BadParameter("--html and --latex report the whole network: leave --layer out")
    if latex:
        require_other(latex, [file])
    trainer, name, batch = compiled(file, data_root, device)
    if html:
        _print(str(trainer.report(html, name, batch)[0]))
    if latex:
        _print(str(trainer.report_latex(latex, name, batch)))
    if html or latex:
        return
    if layer is None:
        _print(trainer.summary(batch) + "\n")
    _print(trainer.explain(layer, batch))


@app.command()
def emit(
    file: ModelPath,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the source.")],
    data_root: DataRoot = None,
    device: Device = CPU,
) -> None:
    """Write the generated source of a model file's training step."""
    from .runs import compiled

    for path in compiled(file, data_root, device)[0].emit(out):
        _print(str(path))


@app.command()
def verify(file: ModelPath, data_root: DataRoot = None) -> None:
    """Check the rules derived for a model file against torch.func, in float64."""
    from ..frontends.model_file import load_model_file
    from ..verification.verification import verify as verify_model

    model_file = load_model_file(file, data_root=data_root)
    report = verify_model(model_file.build(), model_file.loss, model_file.example(2))
    _print(report.to_text())
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def compare(
    file: ModelPath,
    optimisers: Annotated[
        str, typer.Option(metavar="NAMES", help="Names divided by commas.")
    ] = "kfra,kfac,adam",
    updates: Annotated[int | None, typer.Option(min=1, help="Updates each run makes.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds each run trains; default 30.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds to run.")] = 1,
    search: Annotated[
        bool, typer.Option(help="Search the others' learning rates, a run for each.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Folder; default runs/NAME-compare.")] = None,
    data_root: DataRoot = None,
) -> None:
    """Train a model file with several optimisers; write tables, plots and JSON.

    Runs that are in the folder already are taken from it, so an interrupted comparison goes on.
    """
    from ..base.untrusted import slug
    from ..frontends.model_file import load_model_file
    from .comparison.model_file import compare as compare_file
    from .comparison.running import Budget

    if updates is not None and seconds is not None:
        raise typer.BadParameter("give --updates or --seconds, not both")
    budget = Budget(updates, "u") if updates is not None else Budget(seconds or 30.0, "s")
    names = [name.strip() for name in optimisers.split(",") if name.strip()]
    if not names:
        raise typer.BadParameter("--optimisers names none")
    loaded = load_model_file(file, data_root=data_root)
    folder = out or Path("runs") / f"{slug(loaded.name, 'model')}-compare"
    _print("\n" + compare_file(loaded, names, folder, budget, seeds, search, report=_print))
    _print(f"\n{folder / 'report.md'}")


@app.command()
def tune(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="A TOML model file.")] = None,
    effort: Annotated[str, typer.Option(help="quick, or full: every candidate.")] = "quick",
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="As 60s or 2m; default 60s, full 10m.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Write this device's settings there.")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="JSON", help="Merge an exported file.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print all stored settings.")] = False,
    explain: Annotated[
        str | None, typer.Option(metavar="OPERATION", help="Print what was measured for it.")
    ] = None,
    clear: Annotated[bool, typer.Option(help="Delete this device's settings.")] = False,
    device: Annotated[
        str, typer.Option(help="Where FILE is tuned, or whose settings: cpu or cuda.")
    ] = CPU,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Compile candidates for a GPU, measure nothing.")
    ] = False,
    target: Annotated[
        str | None, typer.Option(help="sm_80, sm_90 or sm_100, which need not be here.")
    ] = None,
    kernel: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of a dry run: one kind of launch, or one.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Launches a dry run compiles.")] = 4,
    data_root: DataRoot = None,
    quiet: Quiet = False,
) -> None:
    """Choose by measurement how a model file's step is computed here, or look after what was chosen."""
    from . import tune_command as command

    asked = [file, export, import_, list_ or None, explain, clear or None]
    if sum(each is not None for each in asked) != 1:
        raise typer.BadParameter(
            "give one of FILE, --export, --import, --list, --explain and --clear"
        )
    command.check(effort, budget, None if file else device)
    if dry_run:
        if file is None:
            raise typer.BadParameter("--dry-run needs a model file")
        from .tune_dry_run import dry_run_file

        dry_run_file(file, target, kernel, limit, not quiet, _print, data_root)
        return
    if target is not None or kernel is not None:
        raise typer.BadParameter("--target and --kernel are for --dry-run")
    if file is not None and not command.tune_file(
        file, effort, budget, not quiet, _print, data_root, device
    ):
        raise typer.Exit(130)
    if export is not None:
        command.export_store(export, device, _print)
    if import_ is not None:
        command.import_store(import_, _print)
    if list_:
        command.list_stores(_print)
    if explain is not None:
        command.explain(explain, device, _print)
    if clear:
        command.clear_store(device, _print)


@app.command()
def transfer(
    name: Annotated[str | None, typer.Argument(help="A name; without one all are listed.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Also know the functions of this model file.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Print what is derived from a transfer function, and what kind of function it is."""
    from ..functions.transfer import transfer_names
    from ..verification.transfer_report import transfer_page

    own: Mapping[str, TransferFunction] = {}
    if file is not None:
        from ..frontends.model_file import load_model_file

        own = load_model_file(file, data_root=data_root).transfers
    if name is None:
        _print("\n".join([*own, *(known for known in transfer_names() if known not in own)]))
    else:
        _print(transfer_page(own.get(name, name)))


@app.command()
def env() -> None:
    """Print versions, devices and switches, for a bug report."""
    from ..base import config
    from ..base.environment import environment, table

    _print(table(environment()) + "\n\n" + config.describe())


def _print(text: str) -> None:
    typer.echo(visible(text))
