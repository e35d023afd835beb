"""How a fit shows its progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .records import Record

Show = Callable[[Record, int], None]

LOG_EVERY = 10.0
"""Seconds between lines in a log."""


@contextmanager
def display(active: bool, total: int | None) -> Iterator[Show]:
    """Yield what shows a record and how much is done of ``total`` steps or batches, if this is known."""
    console = Console(stderr=True)
    if not active:
        yield lambda record, done: None
    elif console.is_terminal:
        with _bar(console, total) as show:
            yield show
    else:
        yield _log(console, total)


@contextmanager
def _bar(console: Console, total: int | None) -> Iterator[Show]:
    columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, TimeRemainingColumn(compact=True), console=console) as progress:
        task = progress.add_task("fit", total=total, text="")
        line = Line()

        def show(record: Record, done: int) -> None:
            progress.update(task, completed=done, text=line.text(record))

        yield show


def _log(console: Console, total: int | None) -> Show:
    line, shown = Line(), -math.inf

    def show(record: Record, done: int) -> None:
        nonlocal shown
        text = line.text(record)
        if done == total or time.monotonic() - shown >= LOG_EVERY:
            shown = time.monotonic()
            of = f"/{total}" if total else ""
            console.print(f"{done}{of}  {text}", highlight=False, soft_wrap=True)

    return show


class Line:
    """``loss 66.1  damping 0.08  step size 1.02  validation 66.8  4,300 samples/s``."""

    def __init__(self) -> None:
        self.speed: float | None = None
        self.validation: float | None = None

    def text(self, record: Record) -> str:
        """The line after ``record``: its speed smoothed, with the last validation loss."""
        now = record.samples_per_second
        self.speed = now if self.speed is None else 0.9 * self.speed + 0.1 * now
        if record.validation_loss is not None:
            self.validation = record.validation_loss
        parts = [f"loss {record.loss:.5g}"]
        if record.damping is not None:
            parts.append(f"damping {record.damping:.2g}")
        if record.step_size is not None:
            parts.append(f"step size {record.step_size:.3g}")
        if self.validation is not None:
            parts.append(f"validation {self.validation:.5g}")
        if record.rejected:
            parts.append(f"rejected {record.rejected}")
        return "  ".join([*parts, f"{self.speed:,.0f} samples/s"])
