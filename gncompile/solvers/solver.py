"""What a solver has to give: its phases, what it makes of a batch, and the direction ``Δ = −P ∇``.

Forward pass, gradient, step sizes by the quadratic model, dampings, refusals and the update are common to all
(``derivation/``). A solver is one class in one file, in this package or in a user's::

    class Plain(Solver):
        @classmethod
        def phases(cls, settings):
            return (Phase(DIRECTION, Stage.DIRECTION, ("gradient",)),)

        def prepare(self):
            pass

        def directions(self, gradients):
            return {layer: self.builder.scaled(g, -1.0) for layer, g in gradients.items()}

and ``step_program(graph, loss, settings, Plain)`` trains with it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from ..base.settings import Settings
from ..derivation.batch_gradient import BatchGradient
from ..derivation.optimiser import Optimiser
from ..errors import CompileError
from ..program.builder import Value
from ..program.phases import Phase


class Solver(ABC):
    """Makes a direction of a gradient, in one program."""

    def __init__(self, batch: BatchGradient, optimiser: Optimiser) -> None:
        self.batch, self.optimiser = batch, optimiser
        self.builder, self.settings = optimiser.builder, optimiser.settings

    @classmethod
    @abstractmethod
    def phases(cls, settings: Settings) -> tuple[Phase, ...]:
        """The solver's phases in order; the last is :data:`~gncompile.program.phases.DIRECTION`.

        Those of the stage ``MEASUREMENT`` look at the batch and write no state, those of ``KEEPING`` and
        ``DIRECTION`` may; one that depends on γ repeats for ``DAMPINGS``.
        """

    @abstractmethod
    def prepare(self) -> None:
        """Emit all phases but the last."""

    @abstractmethod
    def directions(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        """``Δ = −P ∇`` by layer, emitted into the present phase; P is that of the last ``prepare``.

        Asked for ∇ in the solver's last phase, for other gradients where noise is measured.
        """

    def refuse_gather_noise(self, reason: str) -> None:
        """Raise :class:`~gncompile.errors.CompileError` where noise is to be measured.

        That takes directions of other gradients than the batch's, by the same P.
        """
        if self.settings.gather_noise is not None:
            raise CompileError(
                f"gather_noise = {self.settings.gather_noise} together with solver={self.settings.solver!r}",
                instead=f"use gather_noise=None: {reason}",
            )

    def accelerated(self, deltas: Mapping[str, Value]) -> dict[str, Value]:
        """Δ bent as ``settings.acceleration`` asks for (``derivation/acceleration.py``), by layer.

        Emitted into a phase after the choice of step sizes; only a solver with the whole matrix can.
        """
        return dict(deltas)
