"""The switch ``dump``: what the compiler made, as text files in reading order."""

from __future__ import annotations

from collections.abc import Callable

from . import config
from .files import atomic_write


def dump(name: str, text: Callable[[], str]) -> None:
    """Write ``text()`` as file ``name`` into the folder of the switch ``dump``, if it is on."""
    folder = config.folder("dump")
    if folder is not None:
        atomic_write(folder / name, text() + "\n")
