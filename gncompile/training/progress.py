"""How a fit shows its progress: a bar on a terminal, a line now and then in a log or a notebook.

A line has what fits the width, and always the count, the loss, the rate and the time left::

    ━━━━━━━━━━╸━━━━━━━━━  1200/3200  loss 0.31  validation 0.35  25,300 samples/s  02:15 left

The last one says why the fit ended, and with which loss; one before it where small batches were joined.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn
from rich.table import Column

from ..base.tables import GAP, count
from .records import History, Record

Show = Callable[[Record, int], None]

LOG_EVERY, MOST_LINES = 10.0, 20
"""Seconds between lines in a log, at least; of a long fit a line for one in so many parts of its time."""
LONGEST_BAR, SHORTEST_BAR = 20, 5
"""Characters of the bar; where there is no room for the shortest it is left out."""


@contextmanager
def display(active: bool, total: int | None, history: History) -> Iterator[Show]:
    """Yield what shows a record and how much is done of ``total`` steps or batches, if this is known.

    At the end, that of an exception included, a line says how the fit of ``history`` ended.
    """
    if not active:
        yield lambda record, done: None
        return
    console, line, raised = Console(stderr=True), Line(total), ""
    try:
        if console.is_terminal:
            with _bar(console, line) as show:
                yield show
        else:
            yield _log(console, line)
    except BaseException as error:
        raised = (
            "interrupted"
            if isinstance(error, KeyboardInterrupt)
            else f"stopped by {type(error).__name__}"
        )
        raise
    finally:
        if history.joining:
            _print(
                console, f"{history.joining}; gather_samples=1, gather_noise=None keep them apart"
            )
        _print(console, line.last(history, raised or history.ended))


@contextmanager
def _bar(console: Console, line: Line) -> Iterator[Show]:
    bar = _Bar()
    text = TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True))
    with Progress(bar, text, console=console) as progress:
        task = progress.add_task("fit", total=line.total, text="")

        def show(record: Record, done: int) -> None:
            written = line.text(record, done, console.width)
            bar.bar_width = min(LONGEST_BAR, console.width - len(written) - 1)
            progress.update(task, completed=done, text=written)

        yield show


class _Bar(BarColumn):
    """A bar that goes where there is no room for it."""

    def render(self, task: Task) -> Any:
        """The bar of ``task``, or nothing."""
        room = self.bar_width is None or self.bar_width >= SHORTEST_BAR
        return super().render(task) if room else ""


def _log(console: Console, line: Line) -> Show:
    shown = -math.inf

    def show(record: Record, done: int) -> None:
        nonlocal shown
        text = line.text(record, done, console.width)
        if line.elapsed - shown >= max(LOG_EVERY, line.elapsed / MOST_LINES):
            shown = line.elapsed
            _print(console, text)

    return show


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class Line:
    """The text of a fit's progress; its clock begins when it is made."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.speed: float | None = None
        self.validation: float | None = None
        self._begun = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds since the fit began."""
        return time.monotonic() - self._begun

    def text(self, record: Record, done: int, width: int) -> str:
        """What is known after ``record``, as far as it fits: the last validation loss, the smoothed speed."""
        now = record.samples_per_second
        self.speed = now if self.speed is None else 0.9 * self.speed + 0.1 * now
        if record.validation_loss is not None:
            self.validation = record.validation_loss
        parts = [  # with a rank: the highest are left out first
            (0, f"{done}/{self.total}" if self.total else f"{done}"),
            (0, f"loss {record.loss:.5g}"),
            (1, _if("validation {:.5g}", self.validation)),
            (3, _if("damping {:.2g}", record.damping)),
            (4, _if("step size {:.3g}", record.step_size)),
            (2, _if("rejected {}", record.rejected or None)),
            (0, f"{self.speed:,.0f} samples/s"),
            (0, self._time(done)),
        ]
        for rank in range(4, -1, -1):
            text = GAP.join(part for of, part in parts if part and of <= rank)
            if len(text) <= width:
                break
        return text

    def last(self, history: History, reason: str) -> str:
        """How a fit ended, with the losses of its last step and validation."""
        if not len(history):
            return f"no update made; ended: {reason}"
        losses = f"loss {history[-1].loss:.5g}{_if(', validation {:.5g}', self.validation)}"
        elapsed = minutes(self.elapsed)
        return f"{count(len(history), 'update')} in {elapsed}, {losses}; ended: {reason}"

    def _time(self, done: int) -> str:
        """The time left, if the end is known, and else what has passed."""
        if not self.total or not done:
            return minutes(self.elapsed)
        return f"{minutes(self.elapsed * max(0, self.total - done) / done)} left"


def minutes(seconds: float) -> str:
    """``02:15``, and from an hour on ``1:02:15``."""
    hours, rest = divmod(round(seconds), 3600)
    return (f"{hours}:" if hours else "") + f"{rest // 60:02}:{rest % 60:02}"


def _if(form: str, value: float | None) -> str:
    return "" if value is None else form.format(value)
