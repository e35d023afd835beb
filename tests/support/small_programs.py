"""Small networks as step programs, and the texts of their launches."""

from __future__ import annotations

import re

import torch
from torch import nn
from training import WIDTH

from gncompile.app.api import understand
from gncompile.base.settings import Settings
from gncompile.emit.step_source import emit_step
from gncompile.graph.model_graph import TracedModel
from gncompile.losses import Loss
from gncompile.pipeline import step_program
from gncompile.program.step_program import StepProgram

METHODS = ("kfra", "kflr", "kfac", "empirical")


def traced(model: nn.Module, loss: str = "bce_with_logits") -> tuple[TracedModel, Loss]:
    found, declared, _ = understand(model.double(), loss, torch.zeros(4, WIDTH).double())
    return found, declared


def program_of(model: nn.Module, method: str = "kfra", **options: object) -> StepProgram:
    found, loss = traced(model)
    return step_program(found.graph, loss, Settings.from_options(method=method, **options))


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, 3)
    )


def unnumbered(text: str) -> str:
    """Without the phase that tells the softmax of a share of the batch from that of the whole."""
    return re.sub(r"\b(p|target_mass)_(curvature|\d+)", r"\1", text)


def triton_texts(program: StepProgram) -> tuple[str, str]:
    """The kernels and the step that the Triton backend emits."""
    source = emit_step(program, backend="triton")
    return source.kernels, source.text
