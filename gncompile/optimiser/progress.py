"""How a fit shows its progress: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .records import Record

Show = Callable[[Record], None]

LOG_EVERY = 10.0
"""Seconds between lines in a log."""


@contextmanager
def display(active: bool, total: int | None) -> Iterator[Show]:
    """Yield what shows a record; ``total`` is the number of steps, if known."""
    console = Console(stderr=True)
    if not active:
        yield lambda record: None
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
        speed = Smoothed()

        def show(record: Record) -> None:
            text = describe(record, speed.add(record.samples_per_second))
            progress.update(task, advance=1, text=text)

        yield show


def _log(console: Console, total: int | None) -> Show:
    speed = Smoothed()
    steps, shown = 0, -LOG_EVERY

    def show(record: Record) -> None:
        nonlocal steps, shown
        steps += 1
        text = describe(record, speed.add(record.samples_per_second))
        if steps == total or time.monotonic() - shown >= LOG_EVERY:
            shown = time.monotonic()
            of = f"/{total}" if total else ""
            console.print(f"{steps}{of}  {text}", highlight=False, soft_wrap=True)

    return show


class Smoothed:
    """A running mean that forgets, so that the speed shown does not flicker."""

    def __init__(self) -> None:
        self.value: float | None = None

    def add(self, value: float) -> float:
        """The mean with ``value`` weighted a tenth."""
        self.value = value if self.value is None else 0.9 * self.value + 0.1 * value
        return self.value


def describe(record: Record, speed: float) -> str:
    """``loss 66.1  damping 0.08  step size 1.02  4,300 samples/s``."""
    parts = [f"loss {record.loss:.5g}"]
    if record.damping is not None:
        parts.append(f"damping {record.damping:.2g}")
    if record.step_size is not None:
        parts.append(f"step size {record.step_size:.3g}")
    if record.rejected:
        parts.append(f"rejected {record.rejected}")
    return "  ".join([*parts, f"{speed:,.0f} samples/s"])
