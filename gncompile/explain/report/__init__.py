"""The derivation as a report to read: linked HTML pages, or one LaTeX article.

views      which values of the program belong to which node
rules      the rules of nodes and losses as formulas
content    what is said, in blocks; html and latex write them
mathml, latex_math      formulas; layout, svg, plots    pictures
"""

from __future__ import annotations

import os
from pathlib import Path

from ...base.files import atomic_write
from ...emit.step_source import StepSource
from ..readback import Readback
from .html import html
from .latex import latex
from .views import Views

__all__ = ["write_html", "write_latex"]


def write_html(
    read: Readback, source: StepSource, folder: str | os.PathLike[str], title: str | None = None
) -> list[Path]:
    """Write the report into ``folder`` and return the files, the overview ``index.html`` first.

    A page a node of the model graph, an overview, a page on the loss. ``source`` is the emitted
    step, ``title`` the network's name if it is not its class. Pages need no network and no script; plots
    need matplotlib. The same program gives the same bytes. Each file is replaced as a whole; files of an
    earlier report with other nodes stay. Raises :class:`OSError` where the folder cannot be written.
    """
    files = html(Views(read, source, title or read.traced.name))
    return [atomic_write(Path(folder) / name, files[name]) for name in _index_first(files)]


def write_latex(
    read: Readback, source: StepSource, path: str | os.PathLike[str], title: str | None = None
) -> Path:
    """Write the report as one article that any LaTeX compiles; arguments as for :func:`write_html`."""
    return atomic_write(path, latex(Views(read, source, title or read.traced.name)))


def _index_first(names: dict[str, str]) -> list[str]:
    return sorted(names, key=lambda name: name != "index.html")
