"""What a fit tells its callbacks, and how they end it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..errors import GncompileError
from .early_stop import StopTraining
from .records import Record

Callback = Callable[[Record], object]


class Callbacks:
    """One callback or several, each of which gets every record."""

    def __init__(self, given: Callback | Sequence[Callback]) -> None:
        listeners = (given,) if callable(given) else given
        if not isinstance(listeners, tuple | list) or not all(map(callable, listeners)):
            raise GncompileError(
                f"callbacks is {given!r}",
                instead="give a function of one Record, or a list of such functions",
            )
        self._listeners = tuple(listeners)
        self.reason = ""
        """Why a callback wants the fit to end; empty as long as none does."""

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def __call__(self, record: Record) -> None:
        """Tell all of them, also if one of them wants to end the fit."""
        for listener in self._listeners:
            name = getattr(listener, "__name__", type(listener).__name__)
            try:
                answer = listener(record)
            except StopTraining as stop:
                self.reason = self.reason or str(stop) or f"the callback {name} stopped it"
            except StopIteration as error:
                # It would end a loop around the fit, or a generator, as though nothing had happened.
                raise GncompileError(
                    f"the callback {name} raised StopIteration at update {record.update}",
                    instead="return True, or raise gncompile.StopTraining(reason), to end the fit; "
                    "next(iterator, None) does not raise at an iterator's end",
                ) from error
            else:
                # Not whatever counts as true: callbacks return things that nobody asked for.
                if isinstance(answer, bool | np.bool_) and answer:
                    self.reason = self.reason or f"the callback {name} stopped it"
