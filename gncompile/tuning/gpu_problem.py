"""One plan of launches as a problem: pruned candidates, checked and timed on scratch tensors of their own.

Scratch tensors are laid out as a step's buffers are, views included, so the kernels compiled are those of the
step. What a plan should compute, the reference backend says in float64, from the same operands.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from types import ModuleType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ..emit import triton_calls as calls
from ..emit.layout import WIDTH
from ..emit.torch_operations import Options
from ..emit.triton_source import TritonWriter
from ..emit.triton_templates import is_plain
from ..program import operations as ir
from ..program import specs
from ..program.schedule import REDUCTIONS, Kernel, Kind, is_elementwise
from ..program.step_program import Instruction, StepProgram
from ..runtime.memory import padded_shape
from ..runtime.reference import apply, moment
from ..runtime.source_files import function_of
from ..triton_kernels.language import triton
from ..triton_kernels.launches import Launch, Runs, run
from ..triton_kernels.resources import can_compile, compile_together
from ..triton_kernels.settings import Precision
from .gpu_work import Figures, Work
from .problem import DEFAULT, Candidate, Key

LIBRARY: Options = {"library": "torch"}
"""A product left to torch's library."""
HOPELESS = 4.0
"""Candidates that are predicted to take so many times as long as the best are not measured."""
SHORTEST = 1e-3
"""Seconds that one measurement takes at least, by repetition."""
REPETITIONS = 100
"""Executions in one measurement at most."""
TOLERANCE = 16.0
"""Allowed relative error, in units of the rounding of sums of k terms, about ``ε √k``."""
TRUNCATED = 2.0**-10
"""Relative error of operands that ``medium`` cuts to TF32, and so of sums of products, however long."""
GUESS = 0.02
"""Residual of the guess that an inverse is refined from; two iterations leave its fourth power."""

Timed = Callable[[], float]
Stopwatch = Callable[[Sequence[Runs]], Timed]
"""From launches to a function that times one execution of them."""


def by_clock(launches: Sequence[Runs], clock: Callable[[], float] = time.perf_counter) -> Timed:
    """The shortest of as many executions as take :data:`SHORTEST` together, by the host's clock."""

    def timed() -> float:
        times: list[float] = []
        while sum(times) < SHORTEST:
            start = clock()
            run(launches)
            times.append(clock() - start)
        return min(times)

    return timed


def by_events(launches: Sequence[Runs]) -> Timed:
    """Device time of a graph of repetitions, divided by their number: launched as a captured step does."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def seconds(go: Callable[[], None]) -> float:
        start.record()
        go()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    run(launches)
    once = seconds(lambda: run(launches))
    repetitions = math.ceil(SHORTEST / max(once, SHORTEST / REPETITIONS))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repetitions):
            run(launches)
    return lambda: seconds(graph.replay) / repetitions


@dataclass(frozen=True)
class Pruned:
    """The candidates that are left of a space, and how many were taken out of it by what."""

    candidates: tuple[Candidate, ...]
    size: int
    removed: Mapping[str, int]


GROUPED = "grouped_"


@dataclass(frozen=True)
class Subject:
    """A plan that may be tuned: its kernels, and what they compute."""

    name: str
    kernel: str
    kernels: tuple[Kernel, ...]
    work: Work

    @property
    def kind(self) -> str:
        """The kernel's kind, alone or in a group."""
        return self.kernel.removeprefix(GROUPED)

    @property
    def is_plain(self) -> bool:
        """Whether torch's library can do the same."""
        return self.kind == Kind.GEMM and is_plain(self.kernels)


class Emitted(Protocol):
    """An emitted step on one device, as a problem sees it."""

    program: StepProgram
    dims: dict[str, int]
    dtype: torch.dtype
    precision: Precision
    place: torch.device
    stopwatch: Stopwatch

    @property
    def figures(self) -> Figures: ...

    @property
    def writer(self) -> TritonWriter: ...

    @property
    def device_functions(self) -> ModuleType: ...

    def on_device(self) -> AbstractContextManager[object]: ...

    def calls(self, subject: Subject, options: Options) -> list[calls.Call]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


def pruned(subject: Subject, bench: Emitted) -> Pruned:
    """The default, then what fits the device and is not hopeless by the cost model, in the space's order."""
    work, figures = subject.work, bench.figures
    space = work.space()
    fitting, removed = [], Counter[str]()
    # With the first, too: a template may adapt its default to what is fused.
    for settings in space:
        lacking = work.misfit(settings, figures)
        if lacking is None:
            options: Options = dataclasses.asdict(settings)
            fitting.append(Candidate(options, work.seconds(settings, figures)))
        else:
            removed[lacking] += 1
    first = Candidate(DEFAULT, work.seconds(space[0], figures))
    best = min(candidate.predicted for candidate in (first, *fitting))
    kept = [candidate for candidate in fitting if candidate.predicted <= HOPELESS * best]
    if len(kept) < len(fitting):
        removed["cost"] = len(fitting) - len(kept)
    # Before it is measured, nothing is known of a library's product but that it is a good one.
    library = [Candidate(LIBRARY, best)] if subject.is_plain else []
    return Pruned((first, *library, *kept), 1 + len(library) + len(space), removed)


@dataclass
class GpuProblem:
    """A plan at one batch size; see :class:`~gncompile.tuning.problem.TuningProblem`."""

    key: Key
    uses: int
    subject: Subject
    bench: Emitted
    _timed: dict[str, Timed] = field(default_factory=dict, init=False)
    _launches: dict[str, list[Runs]] = field(default_factory=dict, init=False)

    @cached_property
    def space(self) -> Pruned:
        """What is left of the template's space for this device."""
        return pruned(self.subject, self.bench)

    @property
    def candidates(self) -> Sequence[Candidate]:
        return self.space.candidates

    def prepare(self, candidates: Sequence[Candidate]) -> None:
        """Compile all kernels of the candidates."""
        launches = [
            each for c in candidates for each in self.launches(c) if isinstance(each, Launch)
        ]
        if launches and can_compile(launches[0]):
            with self.bench.on_device():
                compile_together(launches, os.cpu_count() or 1)

    def check(self, candidate: Candidate) -> str | None:
        """Compile, run once, and compare all that is stored with the reference, in the Frobenius norm.

        A candidate that does not compile or fit, or that spills registers, is refused, too.
        """
        with self.bench.on_device():
            try:
                self.scratch.refill()
                handles = [each.run() for each in self.launches(candidate)]
            except triton.TritonError as error:
                return f"{type(error).__name__}: {str(error).splitlines()[0]}"
            spilled = sum(getattr(handle, "n_spills", None) or 0 for handle in handles)
            if spilled and candidate.options != DEFAULT:
                return f"{spilled} registers spilled"
            return self.scratch.difference(self._allowed)

    def measure(self, candidate: Candidate) -> float:
        """Seconds of one execution of the plan, all its launches together."""
        which = str(candidate)
        with self.bench.on_device():
            if which not in self._timed:
                self._timed[which] = self.bench.stopwatch(self.launches(candidate))
            return self._timed[which]()

    def launches(self, candidate: Candidate) -> list[Runs]:
        """The candidate's launches over the scratch tensors."""
        which = str(candidate)
        if which not in self._launches:
            plan = self.bench.calls(self.subject, candidate.options)
            self._launches[which] = self.scratch.launches(plan)
        return self._launches[which]

    def release(self) -> None:
        """Forget the tensors, and the graphs and launches over them."""
        self._timed.clear()
        self._launches.clear()
        self.__dict__.pop("scratch", None)

    @cached_property
    def scratch(self) -> Scratch:
        """Operands and results."""
        return Scratch(self.subject, self.bench)

    @property
    def _allowed(self) -> float:
        """Largest relative error of a right result."""
        dtype = self.bench.dtype
        rounded = torch.finfo(dtype).eps * math.sqrt(max(self.key.shape))
        if dtype == torch.float32 and self.bench.precision == "medium":
            rounded = max(rounded, TRUNCATED)
        left = GUESS**4 if self.subject.kind == Kind.INVERSE else 0.0
        return TOLERANCE * rounded + left


class Scratch:
    """The tensors of a plan by name, with random operands, and what should be stored."""

    def __init__(self, subject: Subject, bench: Emitted) -> None:
        self.subject = subject
        self.bench = bench
        self.tensors: dict[str, Tensor] = {}
        self._expected: dict[str, Tensor] | None = None

    def launches(self, plan: Sequence[calls.Call]) -> list[Runs]:
        """What the calls of an emitted step make of these tensors."""
        precision = self.bench.precision
        names: dict[str, Any] = {**self.bench.dims, "precision": precision}
        names["kernels"] = self.bench.device_functions
        names["exact"] = "high" if precision == "medium" else precision
        tensors = (p for p in calls.parts(tuple(plan)) if isinstance(p, calls.Tensor))
        names |= {each.name: self._tensor(each.name) for each in tensors}
        body = ["return [", *calls.elements(plan, WIDTH), "]"]
        needed = calls.imports(calls.functions(tuple(plan)))
        imports = ["from gncompile.runtime import convolutions", *needed]
        return list(function_of(body, names, "\n".join(imports))(**names))

    def refill(self) -> None:
        """NaN everywhere, then the operands: equal numbers at every call."""
        reads = [name for kernel in self.subject.kernels for name in kernel.inputs]
        homes = dict.fromkeys(self.bench.writer.home[name] for name in reads)
        for name in (*homes, *(home for _, home in self._stored())):
            base = self._tensor(name)
            (base if base._base is None else base._base).fill_(torch.nan)
        generator = torch.Generator(self.bench.place).manual_seed(0)
        factors = {name for kernel in self.subject.kernels for name in self._factors(kernel)}
        for name in homes:
            # Between 0 and 1 every function of the vocabulary is defined, logarithms and roots included;
            # sums of products should rather be about 0, where transfer functions are not flat.
            self._tensor(name).uniform_(-1 if name in factors else 0, 1, generator=generator)
        for kernel in self.subject.kernels:
            for i in kernel.instructions:
                self._prepare(i)
        if self._expected is None:
            self._expected = self._reference()

    def _factors(self, kernel: Kernel) -> Iterator[str]:
        """The matrices that a kernel multiplies."""
        for i in kernel.instructions:
            if not is_elementwise(i) and not isinstance(i.op, REDUCTIONS):
                names = (self.bench.writer.home[name] for name in i.inputs if name in kernel.inputs)
                yield from (name for name in names if self._tensor(name).dim() > 1)

    def _prepare(self, i: Instruction) -> None:
        """Give operands the properties that a template relies on: symmetry, a guess that can be refined."""
        home = self.bench.writer.home
        if not isinstance(i.op, ir.Multiply | ir.DampedInverse):
            return
        matrix = self._tensor(home[i.inputs[0]])
        if matrix.dim() < 2:
            return
        if isinstance(i.op, ir.Multiply):
            matrix.copy_((matrix + matrix.T) / 2)
            return
        unit = torch.eye(len(matrix), dtype=torch.float64, device=matrix.device)
        matrix.copy_(matrix.double() @ matrix.double().T / len(matrix) + unit)
        damped = matrix.double() + self._tensor(home[i.inputs[1]]).double() * unit
        guess = torch.linalg.inv(damped)
        guess[0, 0] += GUESS / damped[0].norm()
        self._tensor(home[i.name]).copy_(guess)

    def difference(self, allowed: float) -> str | None:
        """What is wrong with the results, or None."""
        assert self._expected is not None
        for name, home in self._stored():
            expected, got = self._expected[home], self._tensor(home).double()
            finite = expected.isfinite()
            if not torch.equal(finite, got.isfinite()):
                return f"{name} is not finite at other places than the reference's"
            if not finite.any():
                continue
            size = expected[finite].norm().clamp(min=torch.finfo(torch.float32).tiny)
            error = float((got - expected)[finite].norm() / size)
            # Not `error > allowed`, which a NaN would pass.
            if not error <= allowed:
                return f"{name}: relative error {error:.2g}, allowed {allowed:.2g}"
        return None

    def _stored(self) -> list[tuple[str, str]]:
        """Each value stored, and the tensor it lives in."""
        home = self.bench.writer.home
        return [(name, home[name]) for kernel in self.subject.kernels for name in kernel.stores]

    def _reference(self) -> dict[str, Tensor]:
        """What each tensor should hold, by the reference backend in float64."""
        home, program = self.bench.writer.home, self.bench.program
        expected: dict[str, Tensor] = {}
        for kernel in self.subject.kernels:
            values = {name: self._tensor(home[name]).double().clone() for name in kernel.inputs}
            for i in kernel.instructions:
                operands = [values[name] for name in i.inputs]
                specs = [program[name].spec for name in i.inputs]
                values[i.name] = self._evaluate(i.op, operands, specs)
            for name in kernel.stores:
                expected[home[name]] = values[name].expand(self._tensor(home[name]).shape)
        return expected

    def _evaluate(self, op: ir.Op, operands: list[Tensor], specs: list[specs.Spec]) -> Tensor:
        match op:
            case ir.Moment():
                return moment(op, operands, self.bench.dims[str(specs[0].samples)])
            case ir.Pointwise(expression) if not operands:
                place = self.bench.place
                return torch.tensor(float(expression), dtype=torch.float64, device=place)
        return apply(op, operands, specs)

    def _tensor(self, name: str) -> Tensor:
        """A tensor of the step as it lies in memory there."""
        if name not in self.tensors:
            self.tensors[name] = self._made(name)
        return self.tensors[name]

    def _made(self, name: str) -> Tensor:
        writer = self.bench.writer
        if name in writer.scratch:
            return self._empty(self.bench.shape(name))
        for elements, vector in writer.vectors.items():
            if name in elements:
                return self._tensor(vector)[elements.index(name)]
        i = self.bench.program[name]
        if isinstance(i.op, ir.VIEWS):
            source = self._tensor(writer.home[i.inputs[0]])
            names = {"source": source, **self.bench.dims}
            text = f"return {writer.view(i.op, 'source', i.spec)}"
            return cast(Tensor, function_of([text], names, "import torch")(**names))
        is_parameter = isinstance(i.op, ir.Leaf) and i.op.kind in ("parameter", "constant")
        packed = is_parameter or name in self.bench.program.packed
        return self._empty(self.bench.shape(name), padded=not packed)

    def _empty(self, shape: tuple[int, ...], padded: bool = True) -> Tensor:
        """Zeros, with rows as far apart as a buffer's."""
        size = padded_shape(shape) if padded else shape
        tensor = torch.zeros(size, dtype=self.bench.dtype, device=self.bench.place)
        return tensor[..., : shape[-1]] if size != shape else tensor
