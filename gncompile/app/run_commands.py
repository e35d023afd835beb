"""Commands that ask a run folder for its model's predictions and losses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import visible
from .device import CPU, Device

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A folder written by train.")]
TABLES = "a .csv, .parquet, .arrow, .npz or .safetensors file"


def predict(
    run: RunPath,
    data: Annotated[Path, typer.Argument(metavar="DATA", help=f"Rows to predict: {TABLES}.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FILE", help="A .csv, .parquet or .npz file.")
    ],
    device: Device = CPU,
) -> None:
    """Write what a trained model predicts for the rows of a data file."""
    from .predict_command import predict as write

    typer.echo(visible(write(run, data, out, device)))


def evaluate(
    run: RunPath,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help=f"{TABLES.capitalize()}; default the run's own."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="As accuracy,auc; default the file's, or the usual."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    data_root: Annotated[
        Path | None,
        typer.Option(metavar="DIR", exists=True, file_okay=False, help="Where its data lie now."),
    ] = None,
    device: Device = CPU,
) -> None:
    """Print the loss and the metrics of a trained model, by default on its validation data."""
    from .predict_command import evaluate as evaluated

    names = (
        None if metrics is None else [each.strip() for each in metrics.split(",") if each.strip()]
    )
    typer.echo(visible(evaluated(run, data, names, as_json, data_root, device)))
