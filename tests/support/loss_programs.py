"""A loss as a program of its own, and every form of its derivatives against ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gncompile.derivation.loss_rules import loss_rules
from gncompile.graph.model_graph import ModelGraph, TracedModel
from gncompile.graph.nodes import Input, Node, Output
from gncompile.losses import Loss
from gncompile.program.builder import ProgramBuilder
from gncompile.program.phases import Phase, Repeat
from gncompile.runtime.executable import Executable

DRAWN = {"sampled", "projected"}


class LossProgram:
    """Everything that a loss's rules give at an output ``[N, K]``, without a network."""

    def __init__(self, loss: Loss, outputs: int, backend: str, rows: str = "N") -> None:
        z, end = Node("z", Input(0), (), (outputs,)), Node("output", Output(), ("z",), (outputs,))
        traced = TracedModel(ModelGraph([z, end]), {}, {}, "loss")
        columns = Phase("columns", sees=("gradient",), repeat=Repeat.COLUMNS)
        builder = ProgramBuilder((Phase("gradient"), columns))
        leaf = builder.leaf("input", "0", ("N", outputs))
        with builder.phase("gradient"):
            rules = loss_rules(builder, loss, leaf)
            results = {"loss": rules.value(), "gradient": rules.gradient()}
            results["hessian"] = rules.sample_hessians()
            results["mean"] = builder.dense(rules.mean_hessian())
            results["product"] = rules.hessian_product(leaf)
            results["projected"] = rules.projected_gradient()
            if loss.sampler:
                results["sampled"] = rules.sampled_gradient()
        with builder.phase("columns"):
            results["columns"] = rules.root_columns()
        builder.columns = outputs
        builder.results = {role: value.name for role, value in results.items()}
        self.loss, self.outputs = loss, outputs
        self.run = Executable(
            builder.finish(), traced, loss,
            dtype=torch.float64, device=torch.device("cpu"), backend=backend,
        )  # fmt: skip

    def load(self, z: Tensor, y: Any) -> None:
        """Bind a batch as a trainer does."""
        self.loss.check_target(tuple(z.shape), z.dtype, y)
        rows = self.loss.rows(y, tuple(z.shape[1:]), torch.float64)
        self.run.load((z.reshape(len(z), -1),), rows)

    def results(self, z: Tensor, y: Any) -> dict[str, Tensor]:
        """Value, gradient, Hessians and what must be equal to them."""
        self.load(z, y)
        self.run.run("gradient", "columns")
        got = {role: self.run.result(role).clone() for role in self.run.program.results}
        c = got.pop("columns").permute(1, 2, 0)
        return got | {"root": c @ c.mT}

    def second_moments(self, z: Tensor, y: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and standard error of ``g gᵀ`` over the draws of a batch of equal samples."""
        self.load(z, y)
        self.run.run("gradient")
        found = {r: self.run.result(r) for r in self.run.program.results.keys() & DRAWN}
        squares = {role: g[:, :, None] * g[:, None, :] for role, g in found.items()}
        return {role: (s.mean(0), s.std(0) / len(z) ** 0.5) for role, s in squares.items()}


def expected(objective: Callable[[Tensor], Tensor], z: Tensor) -> dict[str, Tensor]:
    """Autograd's values: gradient and Hessian of every sample, which carry the N of the mean over samples."""
    batch, flat = len(z), z.reshape(len(z), -1)

    def of(rows: Tensor) -> Tensor:
        return batch * objective(rows.reshape(z.shape))

    whole = torch.func.hessian(of)(flat)
    hessians = torch.stack([whole[n, :, n] for n in range(batch)])
    return {
        "loss": objective(z),
        "gradient": torch.func.grad(of)(flat),
        "hessian": hessians,
        "root": hessians,
        "mean": hessians.mean(dim=0),
        "product": (hessians @ flat[:, :, None])[:, :, 0],
    }


def check_against(
    loss: Loss, objective: Callable[[Tensor], Tensor], z: Tensor, y: Any, relative: float = 1e-12
) -> None:
    """Emitted and interpreted, equal to ``objective`` and its derivatives by ``torch.func``."""
    wanted = expected(objective, z)
    for backend in ("torch", "reference"):
        got = LossProgram(loss, z[0].numel(), backend).results(z, y)
        for role, value in wanted.items():
            error = (got[role] - value).abs().max()
            size = max(float(value.abs().max()), float(wanted["gradient"].abs().max()))
            assert error <= relative * size, (backend, role, float(error), size)
