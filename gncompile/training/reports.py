"""What a trainer tells about itself: tables, derivations, and the source it runs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.files import atomic_write
from ..base.settings import Settings
from ..emit.step_source import StepSource
from ..errors import visible
from ..graph.model_graph import TracedModel
from ..losses.vocabulary import Loss
from ..program.step_program import StepProgram
from .compiled import Compiled

if TYPE_CHECKING:
    from ..explain.readback import Readback


BATCH = 1000
"""Samples of a step that costs are told for, unless another number is given."""


class Reports:
    """The readable side of what was compiled."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled, self._itemsize = compiled, compiled.executable.memory.dtype.itemsize

    def summary(self, batch: int, width: int | None) -> str:
        """See :meth:`Trainer.summary`."""
        from ..explain.explain import summary

        order = self._source.order
        written = summary(
            *self._about, batch=batch, itemsize=self._itemsize, order=order, width=width
        )
        return visible(written)

    def explain(self, layer: str | None, batch: int) -> str:
        """See :meth:`Trainer.explain`."""
        from ..explain.explain import explain

        text = explain(
            *self._about, layer, batch=batch, itemsize=self._itemsize, source=self._source
        )
        return visible(text)

    def report(self, folder: str | os.PathLike[str], title: str | None, batch: int) -> list[Path]:
        """See :meth:`Trainer.report`."""
        from ..explain.report import write_html

        return write_html(self._readback(batch), self._source, folder, title)

    def report_latex(self, path: str | os.PathLike[str], title: str | None, batch: int) -> Path:
        """See :meth:`Trainer.report_latex`."""
        from ..explain.report import write_latex

        return write_latex(self._readback(batch), self._source, path, title)

    def _readback(self, batch: int) -> Readback:
        from ..explain.readback import Readback

        return Readback(*self._about, batch=batch, itemsize=self._itemsize)

    @property
    def _about(self) -> tuple[TracedModel, Loss, Settings, StepProgram]:
        compiled = self._compiled
        return compiled.traced, compiled.loss, compiled.settings, compiled.program

    def emit(self, folder: str | os.PathLike[str]) -> list[Path]:
        """See :meth:`Trainer.emit`."""
        return [atomic_write(Path(folder) / "training_step.py", self.source)]

    @property
    def source(self) -> str:
        """See :attr:`Trainer.source`."""
        return self._source.text

    @property
    def _source(self) -> StepSource:
        return self._compiled.executable.source
