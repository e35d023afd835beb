"""What a trainer tells about itself: tables, derivations, and the source it runs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..base.files import atomic_write
from ..base.settings import Settings
from ..base.tables import visible
from ..emit.torch_operations import Options
from ..emit.torch_source import emit_torch
from ..graph.model_graph import TracedModel
from ..losses.vocabulary import Loss
from ..program.launches import schedule
from ..program.step_program import StepProgram
from ..runtime.executable import Executable

if TYPE_CHECKING:
    from ..explain.readback import Readback


class Reports:
    """The readable side of :class:`~gncompile.training.trainer.Trainer`."""

    traced: TracedModel
    loss_function: Loss
    settings: Settings
    _executable: Executable
    updates: int

    def summary(self) -> str:
        """A table of layers: parameters, rules, factors, cost and memory; launches if there are any."""
        from ..explain.explain import summary

        launched = self._executable.backend == "triton"
        text = summary(
            self.traced,
            self.loss_function,
            self.settings,
            self.program,
            itemsize=self._executable.memory.dtype.itemsize,
            order=schedule(self.program) if launched else None,
        )
        return visible(text)

    def explain(self, layer: str | None = None) -> str:
        """What was derived for one layer, or for everything: formulas, what is stored and why, cost."""
        from ..explain.explain import explain

        text = explain(
            self.traced,
            self.loss_function,
            self.settings,
            self.program,
            layer,
            itemsize=self._executable.memory.dtype.itemsize,
            source=self.source,
        )
        return visible(text)

    def report(self, folder: str | os.PathLike[str], title: str | None = None) -> list[Path]:
        """Write the derivation as linked HTML pages into ``folder``; returns the files, ``index.html`` first.

        A page a node of the network, with formulas, cost and source lines; ``title`` is the network's name
        if it is not its class. Plots of transfer functions need matplotlib.
        """
        from ..explain.report import write_html

        return write_html(self._readback, self.source, folder, title)

    def report_latex(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """Write the derivation as one LaTeX article to ``path``, and return it."""
        from ..explain.report import write_latex

        return write_latex(self._readback, self.source, path, title)

    @property
    def _readback(self) -> Readback:
        from ..explain.readback import Readback

        itemsize = self._executable.memory.dtype.itemsize
        return Readback(
            self.traced, self.loss_function, self.settings, self.program, itemsize=itemsize
        )

    def emit(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the generated source of the step into ``folder``; returns the files."""
        return [atomic_write(Path(folder) / "training_step.py", self.source)]

    @property
    def program(self) -> StepProgram:
        """The step program this trainer runs."""
        return self._executable.program

    @property
    def source_file(self) -> Path | None:
        """The file of the emitted source, for reading; None where none could be written, and for the
        reference backend. What runs is :attr:`source`, whatever becomes of the file."""
        return self._executable.source_file

    @property
    def source(self) -> str:
        """The text of the emitted step; written for reading only where the reference backend runs."""
        if self._executable.source is not None:
            return self._executable.source
        graph = self.traced.graph.to_text()
        return emit_torch(
            self._executable.program, f"A training step of {self.traced.name}.", graph
        )

    @property
    def dtype(self) -> torch.dtype:
        """The precision everything is computed in."""
        return self._executable.memory.dtype

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self._executable.memory.device

    @property
    def backend(self) -> str:
        """``"torch"``, ``"triton"`` or ``"reference"``."""
        return self._executable.backend

    @property
    def precision(self) -> str:
        """That of the Triton backend's float32 products."""
        return self._executable.memory.precision

    @property
    def variants(self) -> Mapping[str, Options]:
        """Options of the instructions that are not computed in the default way, by name."""
        return self._executable.variants

    def __repr__(self) -> str:
        return visible(
            f"Trainer({self.traced.name}, {self.settings.method}, {len(self.traced.graph.layers)} layers, "
            f"{self.updates} updates)"
        )
