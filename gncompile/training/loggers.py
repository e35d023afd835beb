"""Where a fit's numbers go besides its history: files, TensorBoard, and the loggers of other libraries.

Every record is logged as a dictionary of numbers by name, with the update as the step: epoch, loss,
objective, damping, … , validation loss and metrics, those that the step has. A logger is recognised by its
method, in this order::

    log_metrics(values, step)     Lightning's loggers; the module mlflow
    add_scalar(name, value, step) torch's SummaryWriter
    log(values, step)             a run of Weights & Biases; CSVLogger, TensorBoardLogger; anything else

A logger that raises does not end a training: that is told once, in a :class:`LoggerWarning`, and it is tried
again at the next record. At the end of a fit, however it ends, loggers are flushed; those of other libraries
stay open, and closing them is up to who made them.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..base.files import atomic_write
from ..base.untrusted import append_line
from ..errors import GncompileError, LoggerWarning, warn
from .records import Record

Values = Mapping[str, float]
Send = Callable[[dict[str, float], int], object]

MOST = 1 << 30
"""Bytes of a CSV file that is read back: millions of updates."""


class CSVLogger:
    """One line an update in a CSV file, ``fit(..., loggers=[CSVLogger("fit.csv")])``; its column names first.

    The file tells one training. A fit goes on behind the update that the trainer has: lines of later ones,
    which a training has left that was then resumed from a checkpoint, are dropped, and so are all where
    one begins anew. A file that is no such log is refused. Numbers that a step does not have are empty.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self._columns: list[str] | None = None

    def rewind(self, update: int) -> None:
        """Forget what was logged after ``update``; a fit begins with it."""
        try:
            columns, rows = self._read()
            self._write(columns, [row for row in rows if int(row[0]) <= update])
        except OSError as error:
            raise GncompileError(
                f"the log cannot be written: {error.strerror}",
                where=str(self.path),
                instead="choose another file",
            ) from error

    def log(self, values: Values, step: int) -> None:
        """Add one line."""
        row = {"update": step, **values}
        if self._columns is None or not row.keys() <= {*self._columns}:
            columns, rows = self._read()
            self._write([*columns, *(name for name in row if name not in columns)], rows)
        assert self._columns is not None
        append_line(self.path, _line([row.get(name, "") for name in self._columns]))

    def _read(self) -> tuple[list[str], list[list[str]]]:
        """Columns and lines; a last line that was cut short is left out."""
        if not self.path.exists():
            return ["update"], []
        if self.path.stat().st_size > MOST:
            raise self._refused(f"longer than {MOST} bytes")
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1]
            columns, *rows = csv.reader(lines) if lines else [["update"]]
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._refused(f"no log of a training: {error}") from error
        if columns[:1] != ["update"]:
            raise self._refused("no log of a training, whose first column is 'update'")
        for number, row in enumerate(rows, start=2):
            if not row or not row[0].isdecimal() or len(row) > len(columns):
                raise self._refused(f"damaged in line {number}")
        return columns, rows

    def _write(self, columns: list[str], rows: list[list[str]]) -> None:
        filled = (row + [""] * (len(columns) - len(row)) for row in rows)
        atomic_write(self.path, "".join(_line(row) + "\n" for row in (columns, *filled)))
        self._columns = columns

    def _refused(self, found: str) -> GncompileError:
        return GncompileError(
            f"the file is {found}",
            where=str(self.path),
            instead="choose another file, or remove it",
        )


def _line(values: Sequence[object]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


class TensorBoardLogger:
    """Scalars for TensorBoard in ``folder``, ``fit(..., loggers=[TensorBoardLogger("runs/first")])``.

    Where a training is resumed, TensorBoard no longer shows what was logged after the update that it goes
    on from. Needs the extra ``gncompile[tensorboard]``.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise GncompileError(
                "TensorBoard is not installed",
                where="TensorBoardLogger",
                instead="pip install 'gncompile[tensorboard]', or use CSVLogger",
            ) from error
        self.folder = Path(folder)
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None
        self._purge: int | None = None

    def rewind(self, update: int) -> None:
        """Forget what was logged after ``update``; a fit begins with it."""
        self.flush()
        self._purge = update + 1 if any(self.folder.glob("events.*")) else None

    def log(self, values: Values, step: int) -> None:
        """Add one point to every curve."""
        if self._writer is None:
            self._writer = self._make(str(self.folder), purge_step=self._purge)
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write everything, and close the file; another is begun where more is logged."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self._purge = None, None


class _Logger:
    """A logger of any kind, kept from ending a training."""

    def __init__(self, given: Any) -> None:
        self._given, self._send, self._failed = given, _sender(given), False

    def begin(self, update: int) -> None:
        """Go on behind ``update``; this may raise, since nothing is trained yet."""
        if isinstance(self._given, CSVLogger | TensorBoardLogger):
            self._given.rewind(update)

    def log(self, record: Record) -> None:
        """Log the numbers that a step has."""
        numbers = record.to_dict()
        update = numbers.pop("update")
        self._try(self._send, {k: v for k, v in numbers.items() if v is not None}, update)

    def end(self) -> None:
        """Have everything written."""
        names = ("flush", "save") if hasattr(self._given, "log_metrics") else ("flush",)
        for name in names:
            if callable(flush := getattr(self._given, name, None)):
                self._try(flush)

    def _try(self, act: Callable[..., object], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception as error:
            if not self._failed:
                self._failed = True
                warn(
                    LoggerWarning,
                    f"the logger {type(self._given).__name__} raised {type(error).__name__}: {error}",
                    instead="mend it for the next fit; this one goes on, and does not tell it again",
                )


def _sender(logger: Any) -> Send:
    """What takes the numbers of a step; see the module's docstring."""

    def scalars(values: Values, step: int) -> None:
        for name, value in values.items():
            logger.add_scalar(name, value, step)

    sends = {"log_metrics": None, "add_scalar": scalars, "log": None}
    for name, send in sends.items():
        if callable(method := getattr(logger, name, None)):
            return send or method
    raise GncompileError(
        f"loggers holds {logger!r}",
        instead="give objects with a method log(dict, step), such as gncompile.CSVLogger(path), torch's "
        "SummaryWriter, or Lightning's loggers",
    )


class Loggers:
    """The loggers of one fit."""

    def __init__(self, given: object) -> None:
        several = given if isinstance(given, tuple | list) else (given,)
        self._loggers = [_Logger(each) for each in several]

    @contextmanager
    def opened(self, update: int) -> Iterator[Callable[[Record], None]]:
        """Yield what logs a record; go on behind ``update``, and flush however the fit ends."""
        for logger in self._loggers:
            logger.begin(update)
        try:
            yield self._log
        finally:
            for logger in self._loggers:
                logger.end()

    def _log(self, record: Record) -> None:
        for logger in self._loggers:
            logger.log(record)
