"""What ``compile`` makes of a model, a loss and options: all that the parts of a trainer share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..base.settings import Settings
from ..derivation.damping import JUDGED
from ..derivation.optimiser import CHOSEN
from ..errors import BatchError, expected_got
from ..graph.model_graph import TracedModel
from ..losses.vocabulary import Loss
from ..program.step_program import StepProgram
from ..runtime.executable import Executable
from .batches import BatchReader
from .model_identity import ModelIdentity


@dataclass(eq=False)
class Compiled:
    """One model with the program of its steps; ``traced`` follows the model to other tensors."""

    model: nn.Module
    traced: TracedModel
    loss: Loss
    reader: BatchReader
    settings: Settings
    executable: Executable
    identity: ModelIdentity

    @property
    def program(self) -> StepProgram:
        """The program of a step."""
        return self.executable.program

    @property
    def leads(self) -> bool:
        """Whether this process, of one or many, is the one that writes files and tells of progress."""
        processes = self.executable.processes
        return processes is None or processes.leads

    def masks(self, drops: bool) -> tuple[str, ...]:
        """The phase that makes the masks of dropout, drawn or dropping nothing, if the network has any."""
        phase = "dropout" if drops else "no_dropout"
        return (phase,) if phase in self.program.phases else ()

    def trained(self) -> dict[str, Tensor]:
        """The parameters that are updated, by name, in graph order."""
        layers = self.traced.graph.trained.values()
        names = [name for layer in layers for name in layer.parameters]
        return {name: self.traced.parameters[name].detach() for name in names}

    def split(self, by_layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values shaped like ``W̄ = [W, b]`` by layer, in the parameters' shapes by their names."""
        layers = self.traced.graph.trained
        parts: dict[str, Tensor] = {}
        for name, value in by_layer.items():
            parts |= layers[name].split(value)
        shapes = {name: self.traced.parameters[name].shape for name in parts}
        return {name: part.reshape(shapes[name]) for name, part in parts.items()}

    def join(self, by_parameter: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of :meth:`split`; missing parameters count as zero.

        Raises :class:`~gncompile.errors.BatchError` for names and shapes that the trained parameters lack.
        """
        trained = self.trained()
        for name, value in by_parameter.items():
            wanted = list(trained[name].shape) if name in trained else "no trained parameter"
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            if wanted != found:
                raise BatchError(
                    f"the direction has {name!r}\n{expected_got(wanted, found)}",
                    instead=f"give tensors shaped like {', '.join(trained)}",
                )
        zeros = {name: torch.zeros_like(p) for name, p in trained.items()}
        given = {**zeros, **by_parameter}
        return {name: x.joined(given) for name, x in self.traced.graph.trained.items()}

    # --- What the last phases found -------------------------------------------------------------------

    def number(self, role: str) -> float:
        """A scalar of the step, as the host sees it."""
        states = self.executable.memory.states
        if role in CHOSEN:
            return float(states["step_sizes"][CHOSEN[role]])
        if role in JUDGED:
            return float(states[role])
        return float(self.executable.result(role))

    def finite(self, role: str) -> bool:
        """Whether a scalar of the step is finite."""
        return math.isfinite(self.number(role))

    def factors_finite(self, kinds: tuple[str, ...] = ("grad.",)) -> bool:
        """Whether gradients and factors, if any, are finite; for a PSD matrix its diagonal tells."""
        for role in self.program.results:
            if role.startswith(kinds):
                value = self.executable.result(role)
                square = value.dim() == 2 and not role.startswith("grad.")
                if not math.isfinite(float((value.diagonal() if square else value).sum())):
                    return False
        return True

    def gradient_views(self) -> dict[str, Tensor]:
        """The gradients of the step by parameter name."""
        return self.split({
            role.removeprefix("grad."): self.executable.result(role)
            for role in self.program.results if role.startswith("grad.")
        })  # fmt: skip

    @property
    def damping(self) -> float | None:
        """The Levenberg-Marquardt damping λ; None for first-order methods."""
        state = self.executable.memory.states.get("damping")
        return float(state) if state is not None and self.settings.second_order else None
