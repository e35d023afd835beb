"""``gncompile tune --dry-run``: what would be tried on a GPU, compiled for one that need not be here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..base.tables import count
from ..base.tables import table as aligned
from ..errors import CompileError
from ..frontends.model_file import ModelFile, load_model_file
from ..pipeline import step_program
from ..triton_kernels.language import triton
from ..triton_kernels.launches import Launch
from ..triton_kernels.resources import (
    can_compile,
    compile_together,
    resources,
    select_target,
)
from ..tuning.gpu import GpuBench
from ..tuning.gpu_problem import GpuProblem
from ..tuning.gpu_work import Figures, figures_of, nearest_figures
from ..tuning.problem import Candidate, sizes
from ..tuning.search import ranked, weight
from ..tuning.tuner import sizes_of
from .api import understand
from .compile_file import trainer_options
from .solver_choice import Case, chosen_settings
from .tune_command import bar

Print = Callable[[str], None]

COMPILED = 2
"""Candidates compiled beside the default."""


@dataclass(frozen=True)
class Used:
    """What all launches of a candidate use: the most registers and shared memory, all spills, products.

    ``problem`` says why the candidate would never be measured.
    """

    registers: int = 0
    spilled: int = 0
    shared: int = 0
    products: str = ""
    problem: str = ""


def dry_run_file(
    path: Path,
    target: str | None,
    kernel: str | None,
    limit: int,
    progress: bool,
    say: Print,
    data_root: Path | None = None,
) -> None:
    """Print the launches of a model file, their pruned spaces, and what the first candidates use.

    Of the ``limit`` launches that are predicted to cost most, those called ``kernel`` if that is given, the
    default and the next candidates are compiled. Raises :class:`~gncompile.errors.CompileError` without
    Triton or a target, and for a name that no launch has.
    """
    file = load_model_file(path, data_root=data_root)
    figures = figures_of(target) if target else _figures_here()
    bench = bench_for(file, figures)
    problems = sorted(_named(bench, kernel), key=weight, reverse=True)
    samples, precision = file.batch_size, bench.precision
    say(
        f"{file.name}, batches of {samples}, {problems[0].key.dtype} at precision {precision}, "
        f"for sm_{figures.capability}: {count(len(problems), 'distinct launch', 'es')}\n"
    )
    say(overview(problems))
    with bar("compile", min(limit, len(problems)), progress) as advance:
        for problem in problems[:limit]:
            text = details(problem)
            advance(problem.subject.name)
            say("\n" + text)
            problem.release()


def bench_for(file: ModelFile, figures: Figures) -> GpuBench:
    """The launches of a model file's step as the Triton backend would run it."""
    options = trainer_options(file)
    precision = options.pop("precision", "highest")
    for name in ("backend", "tune"):
        options.pop(name, None)
    samples = file.batch_size
    traced, loss, reader = understand(file.build(), file.loss, file.example(2), file.dtype)
    itemsize = reader.dtype.itemsize
    settings, _ = chosen_settings(options, Case(traced.graph, loss, samples, itemsize))
    settings = replace(settings, guarded=settings.second_order)  # as on any CUDA device
    program = step_program(traced.graph, loss, settings)
    dims = sizes_of(program, settings, samples, reader.dtype)
    return GpuBench(program, dims, reader.dtype, precision, torch.device("cpu"), figures)


def _figures_here() -> Figures:
    if not torch.cuda.is_available():
        raise CompileError(
            "there is no CUDA device to compile for", instead="say for which, as --target sm_90"
        )
    major, minor = torch.cuda.get_device_capability()
    return nearest_figures(10 * major + minor)


def _named(bench: GpuBench, kernel: str | None) -> list[GpuProblem]:
    """The problems of a kind of launch, or of the launch that stores the value ``kernel``; else all."""
    wanted = {
        name: key
        for name, key in bench.keys.items()
        if kernel in (None, name, key.kernel, bench.subjects[name].kind)
    }
    if not wanted:
        kinds = sorted({key.kernel for key in bench.keys.values()})
        raise CompileError(
            f"no launch is called {kernel!r}", instead=f"use one of {', '.join(kinds)}"
        )
    return bench.problems(wanted)


def overview(problems: Sequence[GpuProblem]) -> str:
    """A line for every problem: predicted times, and what was pruned by what."""
    rows = [["launch", "shape", "uses", "default ms", "best ms", "candidates", "left", "pruned by"]]
    for problem in problems:
        space = problem.space
        best = min(candidate.predicted for candidate in space.candidates)
        rows.append(
            [
                *(problem.key.kernel, sizes(problem.key.shape), str(problem.uses)),
                f"{space.candidates[0].predicted * 1e3:.3f}",
                f"{best * 1e3:.3f}",
                *(str(space.size), str(len(space.candidates))),
                ", ".join(f"{by} {number}" for by, number in space.removed.items()),
            ]
        )
    return aligned(rows, right=(2, 3, 4, 5, 6))


def details(problem: GpuProblem) -> str:
    """The first candidates of a problem in the order they would be measured, compiled."""
    candidates = ranked(problem.candidates, COMPILED)
    used = compiled(problem, candidates)
    rows = [["candidate", "predicted", "registers", "spilled", "shared", "products", ""]]
    for candidate, each in zip(candidates, used, strict=True):
        numbers = [str(each.registers), f"{each.spilled} B", f"{each.shared} B", each.products]
        rows.append([str(candidate), f"{candidate.predicted * 1e3:.3f} ms", *numbers, each.problem])
    return f"{problem.key}: {problem.subject.name}\n" + aligned(rows, right=(1, 2, 3, 4))


def compiled(problem: GpuProblem, candidates: Sequence[Candidate]) -> list[Used]:
    """What each candidate uses on the bench's target."""
    figures = problem.bench.figures
    launches = [_distinct(problem, candidate) for candidate in candidates]
    every = [launch for of_candidate in launches for launch in of_candidate]
    if every and not can_compile(every[0]):
        raise CompileError(
            "Triton interprets kernels in this process and cannot compile them",
            instead="run without TRITON_INTERPRET",
        )
    select_target(figures.capability)
    compile_together(every, os.cpu_count() or 1)
    return [_used(of_candidate, figures) for of_candidate in launches]


def _distinct(problem: GpuProblem, candidate: Candidate) -> list[Launch]:
    """The launches of a candidate, each kernel once; none for a library's."""
    found: dict[object, Launch] = {}
    for each in problem.launches(candidate):
        if isinstance(each, Launch):
            constants = tuple((n, v) for n, v in each.arguments.items() if n.isupper())
            found.setdefault((each.kernel, constants), each)
    return list(found.values())


def _used(launches: Sequence[Launch], figures: Figures) -> Used:
    try:
        every = [resources(launch, figures.capability) for launch in launches]
    except (triton.TritonError, subprocess.CalledProcessError) as error:
        return Used(problem=f"never measured: {type(error).__name__}")
    if not every:
        return Used(products="library")
    products: dict[str, int] = {}
    for each in every:
        for name, number in each.instructions.items():
            products[name] = products.get(name, 0) + number
    plain = products.pop("fma", 0)
    on_cores = [f"{number} {name}" for name, number in products.items() if number]
    shared = max(each.shared for each in every)
    spilled = sum(each.spilled for each in every)
    fits = shared <= figures.shared
    return Used(
        registers=max(each.registers for each in every),
        spilled=spilled,
        shared=shared,
        products=", ".join(on_cores) or f"{plain} fma",
        problem="" if fits and not spilled else "spills" if fits else "does not fit",
    )
