"""Declarations in other installed packages, found by entry points.

A package that declares transfer functions or losses says so in its ``pyproject.toml``::

    [project.entry-points."gncompile.transfers"]
    mish = "package.activations:mish"

Loading an entry point imports its module, whose declarations then run like anyone's. That happens at the
first unknown name or listing, so that a package nobody asks for costs nothing.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

TRANSFERS = "gncompile.transfers"
LOSSES = "gncompile.losses"

_lock = threading.RLock()
_loaded: set[str] = set()


def load_plugins(group: str) -> None:
    """Import every entry point of ``group``, once a process.

    One that fails is reported by a warning that names its package; the others are still loaded. A plugin
    that asks for unknown names while it is imported does not start the loading again.
    """
    from importlib.metadata import entry_points

    with _lock:
        if group in _loaded:
            return
        _loaded.add(group)
        for entry in entry_points(group=group):
            _load(entry)


def _load(entry: EntryPoint) -> None:
    try:
        entry.load()
    except (Exception, SystemExit) as error:
        package = entry.dist.name if entry.dist else "an unknown package"
        warnings.warn(
            f"the entry point {entry.name!r} of the package {package!r} (group {entry.group!r}) was left "
            f"out, because loading {entry.value!r} failed with {type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
