"""Python's search for garbage in cycles, put off while many objects are made that all stay.

The collector goes through all objects again whenever their number has grown by a quarter. Graphs, programs
and syntax trees are built of objects that are all in use, so nothing is found, and much of the time of a
large compilation would go into looking. Memory without cycles is freed at once all the same.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_lock = threading.Lock()
_within = 0
_was_on = False


@contextmanager
def collector_paused() -> Iterator[None]:
    """No collection within, in any thread; afterwards it is as it was."""
    global _within, _was_on
    with _lock:
        if _within == 0:
            _was_on = gc.isenabled()
            gc.disable()
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if _within == 0 and _was_on:
                gc.enable()
