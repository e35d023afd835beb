"""How convolutions and moments of what they see are launched: as implicit products, or by torch's library.

A convolution with settings is one kernel, with all that is fused to it. Without, which is the default, it is
the library's, then what is fused to it a launch of its own, in place.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph.windows import Geometry
from ..program import convolutions as grids
from ..program.implicit import grid_behind
from ..program.schedule import Function, Kernel, Kind
from .literals import dimension, literal
from .torch_convolutions import channel_words, window_words
from .triton_calls import Call, Expression, call, template
from .triton_templates import (
    File,
    chosen,
    matrix_settings,
    moment_words,
    of_tiles,
    operands_of,
    plans,
    tensor_of,
    tensors_of,
)


def _geometry(g: Geometry) -> Call:
    """A convolution as a record of the runtime's; written out, so that a launch says what it computes."""
    window = {name: literal(value) for name, value in window_words(g.window).items()}
    channels = {name: literal(value) for name, value in channel_words(g).items()}
    return call("convolutions.convolution", call("convolutions.window", **window), **channels)


def _is_implicit(w: File, kernel: Kernel) -> bool:
    return chosen(w, "MatrixSettings", kernel.stores[0]) is not None


@plans(Kind.CONVOLUTION)
def _convolution(w: File, kernel: Kernel, function: Function) -> list[Call]:
    if not _is_implicit(w, kernel):
        return _library(w, kernel, function)
    op = kernel.root.op
    assert isinstance(op, grids.Convolve | grids.ConvolveAdjoint)
    name = "convolve_adjoint" if isinstance(op, grids.ConvolveAdjoint) else "convolve"
    grid, weight, *bias = tensors_of(w, kernel.root.inputs)
    operands = grid, weight, tensor_of(w, kernel.stores[0]), _geometry(op.geometry)
    words: dict[str, Expression | None] = {"bias": bias[0] if bias else None}
    words |= {**of_tiles(w, kernel, function), **matrix_settings(w, (kernel,))}
    return [template(name, *operands, **words)]


def _library(w: File, kernel: Kernel, function: Function) -> list[Call]:
    """The library's convolution into memory that nothing fused to it reads, and then that."""
    root, op = kernel.root, kernel.root.op
    assert isinstance(op, grids.Convolve | grids.ConvolveAdjoint)
    stores, expressions = kernel.stores, function.expressions
    if root.name in stores:
        out = tensor_of(w, root.name)
        stores, expressions = stores[1:], expressions[1:]
    else:
        read = {w.home[name] for name in function.operands if name in w.home}
        free = [name for name in stores if w.home[name] not in read]
        out = tensor_of(w, free[0]) if free else w.own_scratch(root.name, root.spec.shape)
    grid, weight, *bias = tensors_of(w, root.inputs)
    if isinstance(op, grids.Convolve):
        operands: list[Expression] = [grid, weight, bias[0] if bias else "None"]
    else:
        operands = [grid, weight]
    name = "convolve" if isinstance(op, grids.Convolve) else "adjoint"
    calls = [_library_call(name, *operands, _geometry(op.geometry), out)]
    if stores:
        rest = w.device_function(
            replace(kernel, stores=stores), replace(function, expressions=expressions)
        )
        read_too = out, *operands_of(w, kernel, function.operands)
        calls.append(template("elementwise", rest, read_too, tensors_of(w, stores)))
    return calls


def _library_call(name: str, *operands: Expression) -> Call:
    return call("library_call", f"convolutions.{name}", *operands, precision="precision")


@plans(Kind.CONVOLUTION_GRADIENT)
def _gradient(w: File, kernel: Kernel, function: Function) -> list[Call]:
    root, op = kernel.root, kernel.root.op
    assert isinstance(op, grids.ConvolveGradient)
    operands, out = tensors_of(w, root.inputs), tensor_of(w, root.name)
    geometry = _geometry(op.geometry)
    if not _is_implicit(w, kernel):
        return [_library_call("gradient", *operands, geometry, literal(op.homogeneous), out)]
    samples = w.program[root.inputs[0]].spec.samples
    words: dict[str, Expression | None] = {"alpha": f"1 / {dimension(samples)}"}
    words |= {"homogeneous": "True"} if op.homogeneous else {}
    words |= matrix_settings(w, (kernel,))
    return [template("convolve_gradient", *operands, out, geometry, **words)]


@plans(Kind.PATCH_MOMENT)
def _patch_moment(w: File, kernel: Kernel, function: Function) -> list[Call]:
    """``E[p pᵀ]`` of patches that are seen in their grid."""
    moment = kernel.instructions[-1]
    found = grid_behind(w.program, moment.inputs[0])
    assert found is not None
    grid, geometry = found
    alpha, words = moment_words(w, (kernel,))
    operands = tensor_of(w, grid), tensor_of(w, moment.name), _geometry(geometry)
    return [template("patch_moment", *operands, alpha=alpha, **words)]
