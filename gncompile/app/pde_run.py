"""Model files with ``[pde]``: checked, trained into a run folder, and asked for the solution."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base.tables import count
from ..data.domains import Box, generator_of
from ..errors import GncompileError, ModelFileError
from ..frontends.pde_file import PdeFile, load_pde_file
from ..training.records import History
from .compile_file import trainer_options
from .device import CPU
from .reference_solution import reference_values
from .residual_terms import Term
from .residual_trainer import ResidualTrainer
from .residuals import Problem, residuals
from .run_folder import RunFolder
from .run_pictures import draw_loss, draw_solution
from .run_report import page
from .started import Started
from .training_run import FolderRun

EVALUATED = 10_000
"""Points of the box at which the report compares with the reference."""


def problem_of(file: PdeFile, net: nn.Module) -> Problem:
    """The problem of a model file for a network; mistakes in equations and reference name the file."""
    pde = file.pde
    try:
        box = Box(pde.box)
        terms = {}
        for name, term in pde.term.items():
            if term.at:
                points = box.face(term.points, term.draw, **term.at)
            elif term.faces:
                of = term.faces if isinstance(term.faces, tuple) else None
                points = box.faces(term.points, of, term.draw)
            else:
                points = box.interior(term.points, term.draw)
            terms[name] = Term(term.equation, points, term.weight, loss=term.loss, scale=term.scale)
        unknowns = dict(pde.unknowns)
        problem = residuals(net, tuple(pde.box), pde.outputs, terms, unknowns=unknowns, box=box)
        if pde.reference is not None:
            at = reference_points(problem).to(problem.sampling.dtype)
            reference_values(pde.reference, problem.names, at)
        return problem
    except GncompileError as error:
        raise ModelFileError(f"{error}\n  file:       [pde] of {file.path}") from None


def compile_pde(
    file: PdeFile,
    seed: int | None = None,
    *,
    device: torch.device | str = CPU,
    **given: Any,
) -> ResidualTrainer:
    """The trainer of a model file, on a device; ``given`` go before what it says."""
    training = file.training
    seed = training.seed if seed is None else seed
    said = {"tune": training.tune, **trainer_options(file), **given}
    return problem_of(file, file.build(seed).to(device)).compile(seed=seed, **said)


def check_pde(path: Path, device: torch.device) -> dict[str, str]:
    """What a model file describes, by name, if it can be trained; nothing is trained or written."""
    file = load_pde_file(path)
    trainer = compile_pde(file, device=device)
    problem = trainer.problem
    parameters = sum(p.numel() for p in problem.network.parameters())
    terms = {
        f"term {name}": f"{'; '.join(map(str, equations))} at {count(term.points.count, 'point')}, "
        f"loss {term.loss_said}"
        for (name, term), equations in zip(
            problem.terms.items(), problem.system.equations, strict=True
        )
    }
    return {
        "model": file.name,
        "box": ", ".join(f"{low:g} ≤ {x} ≤ {high:g}" for x, (low, high) in file.pde.box.items()),
        **terms,
        "network": " → ".join(str(size) for size in file.sizes.values()),
        "parameters": f"{parameters:,}",
        "solver": trainer.settings.solver,
        "steps": count(file.training.updates, "update"),
    }


@dataclass(kw_only=True)
class PdeRun(FolderRun):
    """A compiled model file with ``[pde]``, and its folder."""

    file: PdeFile
    trainer: ResidualTrainer

    @classmethod
    def _read(cls, path: Path, base: str | None, data_root: Path | str | None) -> PdeFile:
        return load_pde_file(path)

    @classmethod
    def _compiled(
        cls, file: PdeFile, seed: int, device: torch.device, **given: Any
    ) -> dict[str, Any]:
        return _with_batches(file, compile_pde(file, seed, device=device, **given))

    @classmethod
    def _continued(
        cls, file: PdeFile, folder: RunFolder, started: Started, device: torch.device
    ) -> dict[str, Any]:
        problem = problem_of(file, file.build(started.seed).to(device))
        return _with_batches(file, problem.resume(folder.checkpoint))

    @classmethod
    def _settings(
        cls, file: PdeFile, updates: int | None, epochs: int | None, data_root: Path | None
    ) -> dict[str, Any]:
        updates = updates or epochs or file.training.updates  # all points are one batch
        return {"updates": updates, "epochs": None, "data": "", "data_root": None}

    def _fit(self, updates: int) -> History:
        return self.trainer.fit(
            self.batches,
            updates=updates,
            validate_every=self.file.training.validate_every,
            callbacks=[self._after_step],
            progress=self.progress,
            checkpoint=self.folder.checkpoint,
            checkpoint_every=self.started.checkpoint_every,
            loggers=self._loggers(self.file.training.log),
        )

    def _write_results(self) -> None:
        """Weights, report and pictures of the training that has ended."""
        self.save_weights()
        path, problem = self.folder.path, self.trainer.problem
        draw_loss(self.folder.history(), path / "loss.png")
        draw_solution(*solution(problem, self.file), path / "solution.png")
        pages = "What was derived and compiled"
        self.folder.write_report(page(self.folder, self.file.name, self.results(), pages))
        self.trainer.report(self.folder.own_folder("derivation"), self.file.name)

    def results(self) -> dict[str, str]:
        """What to look at first, each under a short name."""
        problem = self.trainer.problem
        parameters = sum(p.numel() for p in problem.network.parameters())
        told = {
            "network": f"{parameters:,} parameters",
            "training": f"{self.trainer.updates} updates, solver {self.trainer.settings.solver}"
            + self.started.elsewhere,
            **{
                f"{name}, mean loss": f"{value:.3g}" for name, value in self.trainer.terms().items()
            },
            **{name: f"{value:.8g}" for name, value in problem.unknowns.items()},
        }
        error = reference_error(problem, self.file)
        if error is not None:
            told[f"relative L2 error, {EVALUATED} points"] = f"{error:.3g}"
        return told


def _with_batches(file: PdeFile, trainer: ResidualTrainer) -> dict[str, Any]:
    return {"trainer": trainer, "batches": trainer.batches(file.pde.resample_every)}


def reference_error(problem: Problem, file: PdeFile) -> float | None:
    """The relative L2 error against the file's reference at points of the box; None where it has none."""
    if file.pde.reference is None:
        return None
    return problem.relative_l2(file.pde.reference, reference_points(problem))


def reference_points(problem: Problem) -> Tensor:
    """Points of the box, its coordinates in the order of the network's inputs."""
    box = problem.sampling.box
    assert box is not None
    return box.interior(EVALUATED).drawn(generator_of(0))


def solution(
    problem: Problem, file: PdeFile, side: int = 101
) -> tuple[dict[str, tuple[float, float]], dict[str, Tensor]]:
    """The box, and on a grid of it the outputs, the reference, and residuals of the terms inside.

    Of one or two coordinates; nothing else is drawn. The values are on the host.
    """
    box = dict(file.pde.box)
    if len(box) > 2:
        return box, {}
    axes = [torch.linspace(*ends, side, dtype=torch.float64) for ends in box.values()]
    points = torch.cartesian_prod(*axes).reshape(-1, len(box))
    inside = [name for name, term in file.pde.term.items() if not term.faces and not term.at]
    drawn: dict[str, Tensor] = {**problem.evaluate(points)}
    for name in inside:
        found = problem.evaluate(points, [name])[name]
        drawn[f"residual {name}"] = found if found.dim() == 1 else found.norm(dim=1)
    return box, {name: value.reshape([side] * len(box)).cpu() for name, value in drawn.items()}
