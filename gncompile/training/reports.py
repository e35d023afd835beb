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
from ..program.costs import NOMINAL
from ..program.step_program import StepProgram
from .compiled import Compiled

if TYPE_CHECKING:
    from ..explain.readback import Readback


class Reports:
    """The readable side of what was compiled; costs are those of a step on so many ``samples``."""

    def __init__(self, compiled: Compiled, samples: int = NOMINAL) -> None:
        self._compiled = compiled
        self._costs = {"batch": samples, "itemsize": compiled.executable.memory.dtype.itemsize}

    def summary(self) -> str:
        """See :meth:`Trainer.summary`."""
        from ..explain.explain import summary

        return visible(summary(*self._about, **self._costs, order=self._source.order))

    def explain(self, layer: str | None = None) -> str:
        """See :meth:`Trainer.explain`."""
        from ..explain.explain import explain

        return visible(explain(*self._about, layer, **self._costs, source=self._source))

    def report(self, folder: str | os.PathLike[str], title: str | None = None) -> list[Path]:
        """See :meth:`Trainer.report`."""
        from ..explain.report import write_html

        return write_html(self._readback, self._source, folder, title)

    def report_latex(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """See :meth:`Trainer.report_latex`."""
        from ..explain.report import write_latex

        return write_latex(self._readback, self._source, path, title)

    @property
    def _readback(self) -> Readback:
        from ..explain.readback import Readback

        return Readback(*self._about, **self._costs)

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
