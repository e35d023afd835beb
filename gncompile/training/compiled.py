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
from ..graph.model_graph import Affine, TracedModel
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

    def masks(self, drops: bool) -> tuple[str, ...]:
        """The phase that makes the masks of dropout, drawn or dropping nothing, if the network has any."""
        phase = "dropout" if drops else "no_dropout"
        return (phase,) if phase in self.program.phases else ()

    def trained(self) -> dict[str, Tensor]:
        """The parameters that are updated, by name, in graph order."""
        trained: dict[str, Tensor] = {}
        for node in self.traced.graph.layers.values():
            assert isinstance(node.op, Affine)
            names = [node.op.weight] + (
                [node.op.bias] if node.op.homogeneous and node.op.bias else []
            )
            trained |= {name: self.traced.parameters[name].detach() for name in names}
        return trained

    def split(self, by_layer: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values shaped like ``W̄ = [W, b]`` by layer as views by parameter name."""
        views = {}
        for layer, value in by_layer.items():
            op = self.traced.graph.layers[layer].op
            assert isinstance(op, Affine)
            views[op.weight] = value[:, :-1] if op.homogeneous else value
            if op.homogeneous and op.bias:
                views[op.bias] = value[:, -1]
        return views

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
        joined, memory = {}, self.executable.memory
        for layer, node in self.traced.graph.layers.items():
            assert isinstance(node.op, Affine)
            columns = self.traced.graph[node.inputs[0]].size + int(node.op.homogeneous)
            joined[layer] = torch.zeros(
                node.size, columns, dtype=memory.dtype, device=memory.device
            )
            for name, view in self.split({layer: joined[layer]}).items():
                if name in by_parameter:
                    view.copy_(by_parameter[name])
        return joined

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
