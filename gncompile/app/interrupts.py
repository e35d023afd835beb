"""Ctrl-C and SIGTERM: a step in progress is finished first, and whoever stops a run hears how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The user interrupted the training; the step in progress was finished first."""


def was_interrupt(stop: BaseException) -> bool:
    """Whether a KeyboardInterrupt ends the program: typer makes a SystemExit of one, and says nothing."""
    if isinstance(stop, KeyboardInterrupt):
        return True
    leaving = stop.__context__
    return leaving is not None and isinstance(leaving.__cause__, KeyboardInterrupt)


@contextmanager
def signals_set(stop: threading.Event, alone: bool = True) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets ``stop``; a second one interrupts at once, if this process is alone.

    Several get the same signal from a terminal and from their launcher, which kills what does not end soon.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and alone:
            raise KeyboardInterrupt
        stop.set()

    with _handled(handle, SIGNALS):
        yield


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    with _handled(signal.default_int_handler, (signal.SIGTERM,)):
        yield


@contextmanager
def _handled(
    handle: Callable[[int, FrameType | None], object], numbers: tuple[signal.Signals, ...]
) -> Iterator[None]:
    """Handle these signals so; only the main thread may."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
