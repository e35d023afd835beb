"""How values lie in memory, against torch's own views; and what of them a template may be given."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import sympy
import torch
from places import NETWORKS, network
from torch import Tensor

import gncompile
from gncompile.emit.torch_source import TorchWriter
from gncompile.graph.windows import Geometry, Window
from gncompile.program import operations as ir
from gncompile.program import specs, strides
from gncompile.program.convolutions import Convolve, Patches
from gncompile.program.implicit import grid_behind
from gncompile.program.launches import fuse, kind_of
from gncompile.program.schedule import Kernel, Kind
from gncompile.program.specs import Spec
from gncompile.program.step_program import Instruction, StepProgram
from gncompile.triton_kernels.joining import joined

MEMORY = torch.empty(10**6)
DIMS = {"N": 13, "F": 11, "Q": 7, "L": 5, "S": 3}


@cache
def program_of(name: str, method: str) -> StepProgram:
    model, x, _ = network(name, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # KFRA hands over to columns, and says so
        return gncompile.compile(model, "bce_with_logits", x, method).program


def tensor(program: StepProgram, name: str) -> Tensor:
    """A value in memory laid out as :func:`strides.layout` says, its views as torch makes them."""
    i = program[name]
    if i.into is not None:
        return tensor(program, i.into)
    if isinstance(i.op, ir.VIEWS):
        text = TorchWriter.view(i.op, "source", i.spec)
        return eval(text, {**DIMS, "source": tensor(program, i.inputs[0])})  # of our own making
    return MEMORY.as_strided(*strides.layout(program, name))


@pytest.fixture(autouse=True)
def _small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strides, "STAND_INS", DIMS)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", ["kfra", "kflr"])
def test_views_lie_as_those_of_torch(name: str, method: str) -> None:
    """And none of them is a copy, which would go stale."""
    program = program_of(name, method)
    views = [i for i in program if isinstance(i.op, ir.VIEWS)]
    assert {type(i.op) for i in views} >= {ir.Share, ir.Part}
    for i in views:
        found = tensor(program, i.name)
        sizes, steps = strides.layout(program, i.name)
        is_view = found.untyped_storage().data_ptr() == MEMORY.untyped_storage().data_ptr()
        assert is_view, str(i)
        assert tuple(found.shape) == sizes, str(i)
        several = [
            (ours, its) for n, ours, its in zip(sizes, steps, found.stride(), strict=True) if n > 1
        ]
        assert all(ours == its for ours, its in several), f"{i}: {steps}, not {found.stride()}"


def grids_of(program: StepProgram, kernel: Kernel) -> tuple[str, ...]:
    """The batch of grids that windows see, if a kernel is a product with what they see."""
    match kernel.kind:
        case Kind.CONVOLUTION:
            return (kernel.root.inputs[0], kernel.root.name)
        case Kind.PATCH_MOMENT:
            found = grid_behind(program, kernel.instructions[-1].inputs[0])
            assert found is not None
            return found[:1]
    return ()


@pytest.mark.parametrize(
    "name", sorted(NETWORKS.keys() - {"computed"})
)  # whose weights have no factors
@pytest.mark.parametrize("method", ["kfra", "kflr"])
def test_templates_are_given_matrices_only(name: str, method: str) -> None:
    """What a moment, a softmax, a sum by row or a convolution is given, torch can view as rows."""
    program = program_of(name, method)
    counted = 0
    for phase in program.phases:
        for kernel in fuse(program, phase):
            by_rows = kernel.kind in (Kind.SECOND_MOMENT, Kind.CROSS_MOMENT, Kind.SOFTMAX)
            by_rows |= isinstance(kernel.root.op, ir.RowSum) and kernel.kind is Kind.REDUCTION
            values = kernel.inputs if by_rows else grids_of(program, kernel)
            for value in values:
                found = tensor(program, value)
                if found.dim() > 2 and found.numel() == tensor(program, values[0]).numel():
                    found.view(-1, found.shape[-1])
                    counted += 1
            others = (Kind.TORCH, Kind.GEMM, Kind.ELEMENTWISE, Kind.REDUCTION)
            if kernel.kind not in others and not values:
                assert all(
                    len(program[n].spec.shape) <= 2 for n in (*kernel.inputs, *kernel.stores)
                )
    assert counted


def small_program(shape: tuple[specs.Dim, ...], op: ir.Op, view: ir.Op, seen: Spec) -> StepProgram:
    """A value, a view of it, and what is computed from that."""
    x = Instruction("x", ir.Zeros(Spec(shape)), (), Spec(shape), "gradient")
    v = Instruction("v", view, ("x",), seen, "gradient")
    return StepProgram((x, v, Instruction("y", op, ("v",), Spec((4, 4)), "gradient")))


def test_what_has_no_rows_is_left_to_torch() -> None:
    """Shares of columns are apart in memory: the moments over them are sums over no matrix's rows."""
    share, whole = Spec(("S", "F", 4)), Spec(("S", "N", 4))
    for view, seen, kind in (
        (ir.Share("F"), share, Kind.TORCH),
        (ir.AsMatrix(specs.Structure.GENERAL, 0), whole, Kind.SECOND_MOMENT),
    ):
        program = small_program(("S", "N", 4), ir.Moment(), view, seen)
        (kernel,) = [k for k in fuse(program, "gradient") if k.stores == ("y",)]
        assert kernel.kind is kind


def test_a_coordinate_that_is_not_one_is_left_to_torch() -> None:
    view = ir.AsMatrix(specs.Structure.GENERAL, 0)
    for coordinate, kind in ((0.0, Kind.TORCH), (1.0, Kind.SECOND_MOMENT)):
        op = ir.Moment(homogeneous=True, coordinate=coordinate)
        program = small_program(("N", 3), op, view, Spec(("N", 3)))
        (kernel,) = [k for k in fuse(program, "gradient") if k.stores == ("y",)]
        assert kernel.kind is kind


def test_only_a_moment_of_patches_alone_sees_them_in_their_grid() -> None:
    """Not one with a coordinate that is not 1, nor one of patches and something else."""
    geometry = Geometry(Window((3,), (2,), (1,), (0,), (1,)), 1, 1)
    grid, whole, rows = Spec(("N", 3)), Spec((2, "N", 2)), Spec(("N", 2, 2))
    for op, inputs, kind in (
        (ir.Moment(homogeneous=True), ("rows",), Kind.PATCH_MOMENT),
        (ir.Moment(homogeneous=True, coordinate=0.0), ("rows",), Kind.TORCH),
        (ir.Moment(), ("rows", "other"), Kind.CROSS_MOMENT),
    ):
        program = StepProgram(
            (
                Instruction("x", ir.Zeros(grid), (), grid, "gradient"),
                Instruction("other", ir.Zeros(rows), (), rows, "gradient"),
                Instruction("p", Patches(geometry), ("x",), whole, "gradient"),
                Instruction("rows", ir.FeaturesLast(), ("p",), rows, "gradient"),
                Instruction("m", op, inputs, Spec((3, 3)), "gradient"),
            )
        )
        (kernel,) = [k for k in fuse(program, "gradient") if k.stores == ("m",)]
        assert kernel.kind is kind


@pytest.mark.parametrize(("groups", "kind"), [(1, Kind.CONVOLUTION), (2, Kind.TORCH)])
def test_draws_join_a_convolution_but_not_one_in_groups(groups: int, kind: Kind) -> None:
    """The items of a batch, which the groups are, would all have equal draws."""
    window = Window((3,), (1,), (1,), (0,), (1,))
    grid, weight = Spec(("N", 6)), Spec((2, 2 // groups))
    h, u = sympy.symbols("h u", real=True)
    program = StepProgram(
        (
            Instruction("x", ir.Zeros(grid), (), grid, "gradient"),
            Instruction("W", ir.Zeros(weight), (), weight, "gradient"),
            Instruction(
                "h", Convolve(Geometry(window, 2, 2, groups)), ("x", "W"), grid, "gradient"
            ),
            Instruction("u", ir.Random("uniform", grid.shape), (), grid, "gradient"),
            Instruction("y", ir.Pointwise(h * u, (h, u)), ("h", "u"), grid, "gradient"),
        )
    )
    assert kind_of(program, [program[name] for name in "huy"]) is kind


@pytest.mark.parametrize(
    ("shape", "broadcast", "expected"),
    [
        ((5, 3, 4), (5, 3, 1), [15, 4]),
        ((5, 3, 4), (3, 4), [5, 12]),
        ((5, 3, 4), (4,), [15, 4]),
        ((5, 3, 4), (5, 1, 4), [5, 3, 4]),
        ((2, 5, 3, 4), (5, 3, 1), [2, 15, 4]),
        ((1, 5, 1, 4), (4,), [5, 4]),
    ],
)
def test_dimensions_are_joined_from_the_front(
    shape: tuple[int, ...], broadcast: tuple[int, ...], expected: list[int]
) -> None:
    """Read by the joined strides, the same elements stand in the same order."""
    x = torch.arange(24.0 * 10).as_strided(shape, torch.empty(shape).stride())
    y = torch.randn(broadcast).expand(shape)
    sizes, steps = joined(shape, [x.stride(), y.stride()], 2)
    assert sizes == expected
    for source, step in zip((x, y), steps, strict=True):
        assert torch.equal(source.as_strided(sizes, step).flatten(), source.flatten())
