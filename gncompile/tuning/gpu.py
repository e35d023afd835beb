"""The Triton backend's problems: every plan of launches in an emitted step, grouped launches as one.

A plan is tuned as it is emitted, by the very calls of the step with other settings in them. Settings belong
to these calls with tensors by number, to the device functions in them and to the source of their template, so
that layers and networks of one shape share them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property, partial
from importlib import import_module
from types import ModuleType
from typing import cast

import torch

from ..emit import triton_functions
from ..emit.step_source import triton_writer
from ..emit.torch_operations import Options
from ..emit.triton_calls import Call, Tensor, TileFunction, parts, text
from ..emit.triton_functions import DeviceFunction, kernels_module
from ..emit.triton_source import TritonWriter
from ..emit.triton_templates import planned
from ..program import convolutions as grids
from ..program import operations as ir
from ..program.schedule import Kernel, Kind, Launch
from ..program.step_program import StepProgram
from ..runtime.memory import bind_shape
from ..runtime.source_files import load_source
from ..triton_kernels import congruence, convolution, elementwise, gemm, inverse, reduce, syrk
from ..triton_kernels.elementwise import ElementwiseSettings
from ..triton_kernels.reduce import ReduceSettings
from ..triton_kernels.settings import MatrixSettings, Precision, Shape
from .device import Device, graphics_processor, processor
from .gpu_problem import GROUPED, LIBRARY, GpuProblem, Stopwatch, Subject, by_clock, by_events
from .gpu_work import Figures, MatrixWork, TileWork, Work, nearest_figures
from .problem import DEFAULT, Key

PRODUCT = "congruence_product"
"""The product ``G W`` before a congruence, which is a launch of its own."""
ITERATIONS = 2
"""Of an inverse that is refined."""

SHARED_SOURCES = (
    "accurate", "grouping", "language", "launches", "library", "patches", "settings", "tiles",
)  # fmt: skip
SOURCES: Mapping[str, tuple[str, ...]] = {
    Kind.GEMM: ("gemm", "grouped_gemm"),
    PRODUCT: ("gemm",),
    Kind.SECOND_MOMENT: ("gemm", "moments", "syrk", "grouped_syrk"),
    Kind.CROSS_MOMENT: ("gemm", "moments", "syrk", "grouped_syrk"),
    Kind.CONVOLUTION: ("gemm", "syrk", "convolution", "elementwise"),
    Kind.CONVOLUTION_GRADIENT: ("gemm", "moments", "syrk", "convolution"),
    Kind.PATCH_MOMENT: ("gemm", "moments", "syrk", "convolution"),
    Kind.CONGRUENCE: ("gemm", "moments", "syrk", "congruence"),
    Kind.PRECONDITION: ("gemm", "grouped_gemm", "precondition"),
    Kind.INVERSE: ("inverse", "pointwise_groups"),
    Kind.ELEMENTWISE: ("gemm", "elementwise", "pointwise_groups"),
    Kind.DECAY: ("gemm", "elementwise", "pointwise_groups"),
    Kind.REDUCTION: ("elementwise", "reduce", "pointwise_groups"),
    Kind.SOFTMAX: ("elementwise", "reduce", "softmax"),
}
"""Modules of ``triton_kernels`` that a kind of plan is made of; only these kinds are tuned."""

SETTINGS: Mapping[str, type] = {
    **dict.fromkeys(SOURCES, MatrixSettings),
    **dict.fromkeys((Kind.ELEMENTWISE, Kind.DECAY), ElementwiseSettings),
    **dict.fromkeys((Kind.REDUCTION, Kind.SOFTMAX), ReduceSettings),
}
SQUARE = (Kind.SECOND_MOMENT, Kind.PATCH_MOMENT, Kind.CONGRUENCE, Kind.INVERSE)
"""Kinds whose tiles have to be square."""
LARGEST = 1 << 16
"""No setting is larger."""


class GpuBench:
    """Launches of the Triton backend for one batch size, see :class:`~gncompile.tuning.problem.Bench`.

    ``target`` is given where nothing is measured: the figures of a device that need not be here.
    """

    def __init__(
        self,
        program: StepProgram,
        dims: Mapping[str, int],
        dtype: torch.dtype,
        precision: str,
        place: torch.device,
        target: Figures | None = None,
    ) -> None:
        self.program = program
        self.dims = dict(dims)
        self.dtype = dtype
        self.precision = cast(Precision, precision)
        self.place = place
        self.target = target
        self.stopwatch: Stopwatch = by_events if place.type == "cuda" else by_clock
        self._modules: dict[tuple[DeviceFunction, ...], ModuleType] = {}

    @property
    def device(self) -> Device:
        if self.place.type == "cuda":
            return graphics_processor(self.place.index)
        return processor("interpreter")

    def on_device(self) -> AbstractContextManager[object]:
        """Triton uses the current CUDA device."""
        return torch.cuda.device(self.place) if self.place.type == "cuda" else nullcontext()

    @cached_property
    def figures(self) -> Figures:
        """The device's data."""
        if self.target is not None or self.place.type != "cuda":
            return self.target or nearest_figures(0)
        found = torch.cuda.get_device_properties(self.place)
        near = nearest_figures(10 * found.major + found.minor)
        shared = getattr(found, "shared_memory_per_block_optin", near.shared)
        processors = found.multi_processor_count
        return dataclasses.replace(near, processors=processors, shared=shared)

    @cached_property
    def writer(self) -> TritonWriter:
        """The step as it is emitted without settings."""
        return triton_writer(self.program)

    @property
    def device_functions(self) -> ModuleType:
        """The step's own, as a module; with other settings a launch may have asked for another since."""
        functions = tuple(self.writer.functions.values())
        if functions not in self._modules:
            self._modules[functions] = load_source(kernels_module(functions), "tuned_kernels")[0]
        return self._modules[functions]

    @cached_property
    def subjects(self) -> dict[str, Subject]:
        """Every plan with a choice, by the name of what its settings belong to."""
        found = (s for plan in self.writer.plans.values() for s in self._of_launch(plan.launch))
        return {s.name: s for s in found if s.work.has_choice}

    def _of_launch(self, launch: Launch) -> Iterator[Subject]:
        kind, kernels = launch.kind, launch.kernels
        drawn = any(isinstance(i.op, ir.Random) for kernel in kernels for i in kernel.instructions)
        if kind not in SOURCES or drawn:
            return  # what is drawn cannot be checked
        grouped = GROUPED if len(kernels) > 1 and kind is not Kind.DECAY else ""
        yield Subject(launch.name, grouped + kind, kernels, self._work(kind, kernels))
        if kind is Kind.CONGRUENCE:
            for i in kernels[0].instructions:
                if isinstance(i.op, ir.Multiply) and len(self.shape(i.inputs[0])) == 2:
                    product = (Kernel(Kind.GEMM, (i,), (i.name,)),)
                    yield Subject(i.name, PRODUCT, product, self._work(Kind.GEMM, product))

    @cached_property
    def keys(self) -> dict[str, Key]:
        dtype = str(self.dtype).removeprefix("torch.")
        return {
            name: Key(s.kernel, _source(s.kind), s.work.sizes, dtype, self.precision, self._form(s))
            for name, s in self.subjects.items()
        }

    def problems(self, wanted: Mapping[str, Key]) -> list[GpuProblem]:
        uses = list(wanted.values())
        names = list(wanted)
        return [
            GpuProblem(key, uses.count(key), self.subjects[names[uses.index(key)]], self)
            for key in dict.fromkeys(uses)
        ]

    def allowed(self, kernel: str, options: Options) -> bool:
        kind = kernel.removeprefix(GROUPED)
        if kind not in SETTINGS:
            return False
        if options == LIBRARY:
            return kind == Kind.GEMM
        names = {field.name for field in dataclasses.fields(SETTINGS[kind])}
        numbers = all(_is_size(name, value) for name, value in options.items())
        square = kind not in SQUARE or options.get("block_m") == options.get("block_n")
        return options == DEFAULT or (options.keys() == names and numbers and square)

    def calls(self, subject: Subject, options: Options) -> list[Call]:
        """The elements of the subject's list of launches, as they are emitted with these options."""
        self.writer.variants = {subject.name: options}
        return planned(self.writer, Launch(subject.kernels[0].kind, subject.kernels))

    # --- what a subject is ------------------------------------------------------------------------------

    def _form(self, subject: Subject) -> str:
        """Digest of what is called, with tensors by number and functions by what they compute."""
        calls = self.calls(subject, DEFAULT)
        tensors = dict.fromkeys(
            part.name for part in parts(tuple(calls)) if isinstance(part, Tensor)
        )
        numbers = {name: f"t{n}{self._pattern(name)}" for n, name in enumerate(tensors)}
        functions = self._functions

        def spelled(leaf: Tensor | TileFunction) -> str:
            return (functions if isinstance(leaf, TileFunction) else numbers)[leaf.name]

        return _digest("\n".join(text(each, spelled) for each in calls))

    @cached_property
    def _functions(self) -> dict[str, str]:
        """What each device function computes, with its parameters by number."""
        written = self.writer.functions.items()
        return {function.name: str(signature) for (_, signature), function in written}

    def _pattern(self, name: str) -> str:
        """How a tensor is broadcast, and what it is a view of."""
        sizes = "".join("1" if n == 1 else "n" for n in self.shape(name))
        chain = []
        while name in self.writer.home and isinstance(self.program[name].op, ir.VIEWS):
            chain.append(type(self.program[name].op).__name__)
            name = self.program[name].inputs[0]
        return "_".join([sizes, *chain])

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape at this batch size."""
        scratch = self.writer.scratch
        dims = scratch[name] if name in scratch else self.program[name].spec.shape
        return bind_shape(dims, self.dims)

    def _work(self, kind: Kind, kernels: Sequence[Kernel]) -> Work:
        numbers = self.dtype, self.precision
        match kind:
            case Kind.GEMM:
                stages = tuple(zip(*map(self._products, kernels), strict=True))
                return MatrixWork(stages, gemm.space, *numbers)
            case Kind.SECOND_MOMENT:
                stage = tuple(map(self._moment, kernels))
                return MatrixWork((stage,), syrk.syrk_space, *numbers, triangle=True)
            case Kind.CROSS_MOMENT:
                return MatrixWork((tuple(map(self._moment, kernels)),), syrk.cross_space, *numbers)
            case Kind.CONVOLUTION:
                stage = (self._convolution(kernels[0]),)
                return MatrixWork((stage,), convolution.space, *numbers)
            case Kind.CONVOLUTION_GRADIENT:
                space = partial(convolution.space, split=True)
                return MatrixWork(((self._at_places(kernels[0]),),), space, *numbers)
            case Kind.PATCH_MOMENT:
                space = partial(convolution.space, square=True, split=True)
                stage = (self._patches(kernels[0]),)
                return MatrixWork((stage,), space, *numbers, triangle=True)
            case Kind.CONGRUENCE:
                shapes = self._congruence(kernels[0])
                return MatrixWork(shapes, congruence.space, *numbers, triangle=True, accumulators=2)
            case Kind.PRECONDITION:
                return MatrixWork(self._directions(kernels), gemm.space, *numbers)
            case Kind.INVERSE:
                sizes = [self.shape(kernel.root.name)[0] for kernel in kernels]
                stage = tuple(Shape(n, n, n) for n in sizes)
                return MatrixWork((stage,) * 2 * ITERATIONS, _inverse_space, *numbers)
        return self._tiles(kind, kernels)

    def _products(self, kernel: Kernel) -> tuple[Shape, ...]:
        """The products that a kernel takes one after the other."""
        root = kernel.root
        *batch, rows, columns = self.shape(root.name)
        shapes = [self.shape(name) for name in root.inputs]
        if isinstance(root.op, ir.Affine):
            inner = [shape[-1] for shape in shapes[: len(shapes) // 2 * 2 : 2]]
        elif isinstance(root.op, ir.MatMul):
            inner = [shapes[0][-2 if root.op.transpose_a else -1]]
        else:
            inner = [shapes[0][-1]]
        return tuple(Shape(rows, columns, n, *batch) for n in inner)

    def _moment(self, kernel: Kernel) -> Shape:
        rows, columns = self.shape(kernel.root.name)
        samples = self.shape(kernel.root.inputs[0])[:-1]
        return Shape(rows, columns, int(torch.Size(samples).numel()))

    def _convolution(self, kernel: Kernel) -> Shape:
        """A convolution as a product by place, its adjoint as one by point."""
        op = kernel.root.op
        assert isinstance(op, grids.Convolve | grids.ConvolveAdjoint)
        g, *batch = op.geometry, *self.shape(kernel.root.name)[:-1]
        taps, rows = math.prod(g.window.kernel), math.prod(batch)
        if isinstance(op, grids.Convolve):
            return Shape(rows * g.places, g.outputs // g.groups, g.columns, g.groups)
        points, inner = math.prod(g.window.size), g.outputs // g.groups * taps
        return Shape(rows * points, g.inputs // g.groups, inner, g.groups)

    def _at_places(self, kernel: Kernel) -> Shape:
        """The gradient of a convolution as a moment over samples and places, for each group."""
        op = kernel.root.op
        assert isinstance(op, grids.ConvolveGradient)
        g, (rows, columns) = op.geometry, self.shape(kernel.root.name)
        samples = self.shape(kernel.root.inputs[0])[0]
        return Shape(rows // g.groups, columns, samples * g.places, g.groups)

    def _patches(self, kernel: Kernel) -> Shape:
        """The moment of patches at all places of all groups."""
        moment = kernel.instructions[-1]
        rows = math.prod(self.shape(moment.inputs[0])[:-1])
        size, _ = self.shape(moment.name)
        return Shape(size, size, rows)

    def _congruence(self, kernel: Kernel) -> tuple[tuple[Shape, ...], ...]:
        """The sum over samples, if there is one, and that over the layer above."""
        size = self.shape(kernel.stores[0])[0]
        parts = {type(i.op): i for i in kernel.instructions}
        above = Shape(size, size, self.shape(parts[ir.Multiply].inputs[1])[0])
        if ir.Moment not in parts:
            return ((above,),)
        slopes = self.shape(parts[ir.Moment].inputs[0])[:-1]
        return ((Shape(size, size, int(torch.Size(slopes).numel())),), (above,))

    def _directions(self, kernels: Sequence[Kernel]) -> tuple[tuple[Shape, ...], ...]:
        """``∇ Q⁻¹`` of every layer, then ``G⁻¹`` times that where it is a matrix."""
        right, left = [], []
        for kernel in kernels:
            rows, columns = self.shape(kernel.root.name)
            right.append(Shape(rows, columns, columns))
            if len(self.shape(kernel.root.inputs[1])) == 2:
                left.append(Shape(rows, columns, rows))
        return tuple(tuple(stage) for stage in (right, left) if stage)

    def _tiles(self, kind: Kind, kernels: Sequence[Kernel]) -> Work:
        shapes, operands = [], 1
        for kernel in kernels:
            names = (*kernel.inputs, *kernel.stores)
            every = [_two_dimensional(self.shape(name)) for name in names]
            largest = max(every, key=lambda shape: shape[0] * shape[1])
            shapes.append(largest)
            operands = max(operands, every.count(largest))
        given = tuple(shapes), operands, self.dtype
        many = len(kernels) > 1 or kind is Kind.DECAY
        if SETTINGS[kind] is ElementwiseSettings:
            tile = ElementwiseSettings(8, 256) if many else elementwise.default_settings(*shapes[0])
            return TileWork(*given, tile, elementwise.space)
        sums = ReduceSettings(8, 128) if many else reduce.default_settings(*shapes[0])
        return TileWork(*given, sums, reduce.space, summed=kind is Kind.REDUCTION)


def _inverse_space(
    shape: Shape, dtype: torch.dtype, precision: Precision
) -> tuple[MatrixSettings, ...]:
    # As emitted: below `high` an inverse would be as rough as its products.
    return inverse.space(shape.rows, dtype, "high" if precision == "medium" else precision)


def _is_size(name: str, value: object) -> bool:
    """Whether a setting is a number that a kernel can be compiled with."""
    if type(value) is not int or not 0 < value <= LARGEST:
        return False
    return value.bit_count() == 1 or not name.startswith(("block", "num_warps"))


def _two_dimensional(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor of any dimension."""
    columns = shape[-1] if shape else 1
    return int(torch.Size(shape[:-1]).numel()), columns


@cache
def _source(kind: str) -> str:
    """Digest of all code that a kind of plan is made of."""
    names = (*SHARED_SOURCES, *SOURCES[kind])
    modules = [import_module(f"gncompile.triton_kernels.{name}") for name in names]
    return _digest("\n".join(map(inspect.getsource, [*modules, triton_functions])))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
