"""From a step program to the files of its step: the passes before emission, in order, then the writer.

within_products    torch: first, for it takes values out that would need memory
schedule           triton: first, for what stays inside a kernel needs no memory
plan_buffers       last, once it is known which values reach memory
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ..base.exact_key import Recent, exact_key
from ..program.buffers import plan_buffers
from ..program.launches import launch_buffers, schedule
from ..program.recompute import within_products
from ..program.schedule import Schedule
from ..program.step_program import StepProgram
from .layout import Statement
from .scalar_source import floats
from .torch_operations import Options
from .torch_source import TorchWriter
from .triton_functions import kernels_module
from .triton_source import TritonWriter


@dataclass(frozen=True)
class StepSource:
    """The emitted step: its ``text``, which of its lines compute what, and what was decided before.

    ``buffers`` gives the buffer of every value with memory of its own. Of the Triton backend's step
    ``kernels`` is the text of the device functions, and ``order`` the launches.
    """

    text: str
    statements: tuple[Statement, ...]
    buffers: Mapping[str, str]
    kernels: str = ""
    order: Schedule | None = None

    def of(self, values: Collection[str]) -> list[Statement]:
        """The lines that compute any of these values."""
        return [line for line in self.statements if not set(values).isdisjoint(line.values)]


def emit_step(
    program: StepProgram,
    title: str = "A training step.",
    summary: str = "",
    *,
    backend: str = "torch",
    variants: Mapping[str, Options] | None = None,
    host: bool = False,
) -> StepSource:
    """The source of a step for a backend, ``"torch"`` or ``"triton"``.

    ``variants`` gives the options of instructions, or the settings of launches by the first value stored,
    where they are not the defaults; with ``host`` the torch backend computes numbers in Python, which is for
    a CPU. The last few sources are kept, with their programs.
    """
    variants = dict(variants or {})
    key = id(program), title, summary, backend, exact_key(variants), host

    def written() -> tuple[StepProgram, StepSource]:
        return program, _written(program, title, summary, backend, variants, host)

    return _sources.get(key, written)[1]


_sources: Recent[tuple[StepProgram, StepSource]] = Recent(kept=8)


def _written(
    program: StepProgram,
    title: str,
    summary: str,
    backend: str,
    variants: Mapping[str, Options],
    host: bool,
) -> StepSource:
    if backend == "triton":
        writer = triton_writer(program, variants)
        text, statements = writer.module(title, summary)
        kernels = kernels_module(writer.functions.values())
        return StepSource(text, statements, writer.buffers, kernels, writer.schedule)
    program = within_products(program, variants)
    buffers = plan_buffers(program, without=floats(program) if host else ())
    text, statements = TorchWriter(program, buffers, variants, host).module(title, summary)
    return StepSource(text, statements, buffers)


def triton_writer(
    program: StepProgram, variants: Mapping[str, Options] | None = None
) -> TritonWriter:
    """The writer of a step that launches kernels, which are planned."""
    order = schedule(program)
    return TritonWriter(order, launch_buffers(order), variants)
