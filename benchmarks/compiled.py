"""Our side of the benchmark: compiled programs run phase by phase on a problem's batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gncompile.app.api import understand
from gncompile.base.settings import Settings
from gncompile.emit.torch_operations import Options
from gncompile.pipeline import step_program
from gncompile.program.costs import CostModel
from gncompile.runtime.executable import Executable
from gncompile.runtime.memory import dense

from .problems import Problem

FACTORS = ("gradient", "curvature")


class Compiled:
    """The training step of a model under one method, its phases run by hand on one batch."""

    def __init__(
        self,
        model: nn.Module,
        loss: str | nn.Module,
        x: Tensor,
        y: Tensor,
        method: str = "kfra",
        backend: str = "torch",
        precision: str = "highest",
        variants: Mapping[str, Options] | None = None,
    ) -> None:
        traced, declared, reader = understand(model, loss, x)
        self.traced = traced
        # As the peers do: plain KFRA, without the trainer's trace correction, on the whole batch.
        settings = Settings.from_options(method=method, trace_correction=False, factor_share=1.0)
        self.program = step_program(traced.graph, declared, settings)
        self.executable = Executable(
            self.program,
            traced,
            declared,
            backend=backend,
            precision=precision,
            dtype=reader.dtype,
            device=reader.device,
            variants=variants,
        )
        self.layers = list(traced.graph.layers)
        self.inputs = reader.inputs(x)
        self.target = reader.target(len(x), y)
        self.costs = CostModel(self.program, len(x))

    @classmethod
    def of(
        cls,
        problem: Problem,
        method: str = "kfra",
        backend: str = "torch",
        dtype: torch.dtype = torch.float32,
        precision: str = "highest",
    ) -> Compiled:
        """For a problem, on a copy of its model in that dtype."""
        x = problem.x.to(dtype)
        return cls(problem.fresh(dtype), problem.declared_loss, x, x, method, backend, precision)

    def run(self, *phases: str) -> None:
        """Load the batch and run phases."""
        self.executable.load(self.inputs, self.target)
        self.executable.run(*phases)

    def flops(self, *phases: str) -> float:
        """Flops of one call of ``run`` with these phases."""
        return sum(self.costs.phase(name).flops for name in phases if name in self.program.phases)

    def gradients(self) -> dict[str, Tensor]:
        """``∇W̄ = [∇W, ∇b]`` by layer, of the last run."""
        return {layer: self.executable.result(f"grad.{layer}") for layer in self.layers}

    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """``(Ḡ, Q)`` in full by layer, of the last run."""
        return {
            layer: (self._factor("G", layer), self._factor("Q", layer)) for layer in self.layers
        }

    def _factor(self, kind: str, layer: str) -> Tensor:
        name = self.program.results[f"{kind}.{layer}"]
        return dense(self.executable.step.value(name), self.program[name].spec)
