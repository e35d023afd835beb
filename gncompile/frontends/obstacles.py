"""All that stands in a trace's way, told at once: nobody should mend a model one error at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx

from ..errors import TraceError
from .fx_nodes import origin_of

_SHOWN = 8


class Obstacles:
    """The TraceErrors met so far, one a place in the user's model."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._texts)

    @contextmanager
    def collected(self, node: fx.Node | None = None) -> Iterator[None]:
        """Keep a TraceError raised inside; of several at one place only the first is told."""
        try:
            yield
        except TraceError as error:
            place = str(origin_of(node)) if node is not None else ""
            self._texts.setdefault(place, str(error))

    def raise_all(self, name: str) -> None:
        """Raise one TraceError for all of them."""
        texts = list(dict.fromkeys(self._texts.values()))
        if len(texts) == 1:
            raise TraceError(texts[0])
        if texts:
            shown = [f"{i}. {text}" for i, text in enumerate(texts[:_SHOWN], start=1)]
            more = len(texts) - len(shown)
            shown += [f"and {more} more"] if more else []
            head = f"{name} cannot be compiled, for {len(texts)} reasons:"
            raise TraceError("\n".join([head, *shown]))
