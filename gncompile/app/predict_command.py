"""What ``gncompile predict`` and ``gncompile evaluate`` do with a run folder."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..base.environment import table
from ..base.files import atomic_path, atomic_write
from ..base.untrusted import in_cell, shown
from ..errors import GncompileError
from .loaded_run import Run
from .runs import load
from .solved_run import SolvedRun

Columns = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


def predict(run: Path, data: Path, out: Path, device: str) -> str:
    """Write what the network in ``run`` predicts for the rows of ``data`` to ``out``, in their order.

    The file is written in one step, and never over ``data``, the data of the run or one of its files.
    Returns a line to print.
    """
    write = _writer(out)
    loaded = load(run, device=device)
    if isinstance(loaded, SolvedRun):
        require_other(out, [data, *run.iterdir()])
        return _written(loaded.predict(data), write, out)
    trained_on = (loaded.file.data.name, loaded.file.data.validation_file)
    kept = [data, *map(Path, filter(None, trained_on)), *loaded.folder.path.iterdir()]
    require_other(out, kept)
    columns: Columns = loaded.predict(data)
    if loaded.schema.archive and loaded.schema.classes is None and out.suffix == ".npz":
        name = (loaded.schema.targets or [loaded.schema.numeric[0].name])[0]
        columns = {name: np.stack([*columns.values()], axis=1)}  # one array, as they were read
    return _written(columns, write, out)


def _written(columns: Columns, write: Callable[[Columns, Path], object], out: Path) -> str:
    write(columns, out)
    rows = len(next(iter(columns.values())))
    return f"{out}: {rows} rows, {_listed(list(columns))}"


def evaluate(
    run: Path,
    data: Path | None,
    metrics: Sequence[str] | None,
    as_json: bool,
    data_root: Path | None,
    device: str,
) -> str:
    """The loss and the metrics of the network in ``run``, of ``data`` or of the run's own validation data.

    Of equations :meth:`SolvedRun.evaluate`.
    """
    loaded = load(run, data_root, device)
    found = loaded.evaluate(data, metrics)
    if as_json:
        return json.dumps(found)
    in_units = isinstance(loaded, Run) and loaded.file.in_units
    names = {"loss": "loss, of standardised targets"} if in_units else {}
    return table({names.get(name, name): f"{value:.6g}" for name, value in found.items()})


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f", … ({len(names)} columns)" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def require_other(written: Path, given: Sequence[Path]) -> None:
    """Refuse to replace what a command reads, or needs to be able to go on."""
    if written.exists() and any(each.exists() and written.samefile(each) for each in given):
        raise GncompileError(
            f"{shown(str(written))} would be replaced", instead="write to another file"
        )


# --- Files of columns ------------------------------------------------------------------------------------


def _writer(path: Path) -> Callable[[Columns, Path], object]:
    if path.suffix not in WRITERS:
        raise GncompileError(
            f"{shown(str(path))} is of no kind that predictions are written as",
            instead=f"name a file that ends in {', '.join(WRITERS)}",
        )
    return WRITERS[path.suffix]


def _write_csv(columns: Columns, path: Path) -> None:
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(map(in_cell, columns))
    rows.writerows(zip(*(map(_cell, column) for column in columns.values()), strict=True))
    atomic_write(path, text.getvalue())


def _cell(value: Any) -> object:
    """A number in as many digits as tell it apart from others of its type; a text that computes nothing."""
    if not isinstance(value, str):
        return str(value)
    try:
        float(value)
    except ValueError:
        return in_cell(value)
    return value


def _write_parquet(columns: Columns, path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise GncompileError(
            "parquet files need pyarrow, which is not installed",
            instead="pip install 'gncompile[tables]', or write a .csv or .npz file",
        ) from None
    with atomic_path(path) as temporary:
        parquet.write_table(pyarrow.table(dict(columns)), temporary)


def _write_npz(columns: Columns, path: Path) -> None:
    # numpy's savez takes names as keywords, and cannot write a column called "file".
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, column in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(column), allow_pickle=False)


WRITERS: Mapping[str, Callable[[Columns, Path], object]] = {
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".npz": _write_npz,
}
"""By the suffix of the file."""
