"""Launches compute what the program says, in an order that respects every use and every overwrite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import sympy
import torch
from architectures import normal
from small_programs import METHODS, chain, program_of, traced, unnumbered
from training import NETWORKS, WIDTH, Gated

from gncompile.base.settings import Settings
from gncompile.derivation.factors import PHASES
from gncompile.graph.model_graph import TracedModel
from gncompile.losses import Loss
from gncompile.pipeline import step_program
from gncompile.program import operations as ir
from gncompile.program.builder import ProgramBuilder
from gncompile.program.dependencies import dependencies
from gncompile.program.launches import fuse, schedule
from gncompile.program.operations import VIEWS, Leaf, Trace
from gncompile.program.phases import Stage, step_phases
from gncompile.program.schedule import Kernel, Kind, Schedule
from gncompile.program.step_program import Instruction, StepProgram
from gncompile.runtime.executable import Executable


def instructions(s: Schedule, phase: str) -> Iterator[Instruction]:
    for launch in s.phases[phase]:
        for kernel in launch.kernels:
            yield from kernel.instructions


def reordered(s: Schedule) -> StepProgram:
    """The program with its instructions in the order of the launches, views right after what they show."""
    program = s.program
    done = [i for i in program if isinstance(i.op, Leaf)]
    waiting = [i for i in program if isinstance(i.op, VIEWS)]

    def views() -> None:
        names = {i.name for i in done}
        while ready := [v for v in waiting if v.inputs[0] in names]:
            for v in ready:
                waiting.remove(v)
                done.append(v)
                names.add(v.name)

    for phase in program.phases:
        views()
        for i in instructions(s, phase):
            done.append(i)
            views()
    return replace(program, instructions=tuple(done))


def states_after(program: StepProgram, found: TracedModel, loss: Loss, steps: int) -> dict:
    """All states and parameters after some steps by the reference backend, phase by phase in order."""
    parameters = {k: v.detach().clone() for k, v in found.parameters.items()}
    own = replace(found, parameters=parameters)
    run = Executable(program, own, loss, backend="reference", dtype=torch.float64,
                     device=torch.device("cpu"))  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, y = normal(generator, 7, WIDTH), torch.sigmoid(normal(generator, 7, 3))
        run.load((x,), y)
        run.run(*(phase.name for phase in program.step if phase.stage is not Stage.FAILURE))
    run.run("reject")
    return {**run.memory.states, **parameters}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_launches_compute_what_the_program_computes(name: str, method: str) -> None:
    model = NETWORKS[name]().double()
    found, loss = traced(model)
    options = {"l2": 1e-3, "average": 0.9, "factor_share": 0.5, "factor_samples": 2}
    program = step_program(found.graph, loss, Settings(method=method, **options))
    order = schedule(program)
    for phase in program.phases:
        expected = [i for i in program.phase(phase) if not isinstance(i.op, VIEWS)]
        assert sorted(map(str, instructions(order, phase))) == sorted(map(str, expected))
    shuffled = reordered(order)
    before, after = (states_after(p, found, loss, 3) for p in (program, shuffled))
    for key in before:
        # The same operations on the same numbers, so not even rounding differs.
        assert torch.equal(before[key], after[key]), key


@pytest.mark.parametrize("method", METHODS)
def test_no_kernel_waits_for_itself(method: str) -> None:
    program = program_of(Gated(), method, l2=1e-3)
    for phase, launches in schedule(program).phases.items():
        order = {i.name: n for n, launch in enumerate(launches)
                 for kernel in launch.kernels for i in kernel.instructions}  # fmt: skip
        for before, after in dependencies(program, phase).edges:
            assert order[before] <= order[after]
        together = list(fuse(program, phase))
        inside = {i.name: k for k in together for i in k.instructions}
        for before, after in dependencies(program, phase).edges:
            if order[before] == order[after]:
                assert inside[before] is inside[after], "kernels of one launch depend on each other"


def test_values_that_something_else_reads_reach_memory() -> None:
    program = program_of(NETWORKS["residual"](), l2=1e-3)
    for launches in schedule(program).phases.values():
        for kernel in (k for launch in launches for k in launch.kernels):
            own = {i.name for i in kernel.instructions}
            read = {
                n
                for i in program
                if i.name not in own and not isinstance(i.op, Leaf)
                for n in i.inputs
            }
            assert own & (read | set(program.results.values())) <= set(kernel.stores)
            assert all(program[n].into is None or n in kernel.stores for n in own)


def kernels(program: StepProgram, phase: str) -> list[Kernel]:
    return [k for launch in schedule(program).phases[phase] for k in launch.kernels]


def test_a_transfer_function_and_its_slope_are_an_epilogue() -> None:
    first = kernels(program_of(chain()), "gradient")[0]
    assert first.kind is Kind.GEMM
    # tanh' follows from tanh, so the pre-activation never reaches memory.
    assert first.stores == ("a_layer_1_tanh", "b_layer_1_tanh")
    assert first.instructions[0].name == "h_layer_0"


def test_the_kfra_step_is_one_kernel() -> None:
    found = [k for k in kernels(program_of(chain()), "curvature") if k.kind is Kind.CONGRUENCE]
    assert [k.stores for k in found] == [("G_layer_2",), ("G_layer_0",)]
    assert [len(k.instructions) for k in found] == [
        4,
        4,
    ]  # M W, Wᵀ(M W), E[b bᵀ], and their product


def test_independent_kernels_share_launches() -> None:
    text = schedule(program_of(chain())).to_text()
    phases = schedule(program_of(chain())).phases
    assert [launch.kind for launch in phases["direction"]] == [Kind.PRECONDITION]
    for phase in ("share_inputs", "whole_inputs"):
        (moments,) = phases[phase]
        assert (moments.kind, len(moments.kernels)) == (Kind.SECOND_MOMENT, 3)
    assert "direction: 1 launches, 3 kernels" in text


def test_kernels_wait_for_more_of_their_kind() -> None:
    """Gradients become known layer by layer, traces of Ḡ too; each are one launch."""
    phases = schedule(program_of(chain())).phases
    (gradients,) = (x for x in phases["gradient"] if x.kind is Kind.CROSS_MOMENT)
    assert [k.root.name for k in gradients.kernels] == [f"grad_layer_{n}" for n in (0, 2, 4)]
    traces = [x for x in phases["curvature"] if isinstance(x.kernels[0].root.op, Trace)]
    assert [len(x.kernels) for x in traces] == [2]
    # The recursion itself cannot wait.
    steps = [x for x in phases["curvature"] if x.kind is Kind.CONGRUENCE]
    assert [len(x.kernels) for x in steps] == [1, 1]


def test_an_overwritten_tensor_is_read_before() -> None:
    program = program_of(chain())
    graph = dependencies(program, "update")
    moved = next(i for i in program.phase("update") if i.into == "v_0_weight")
    saved = next(i for i in program.phase("update") if i.into == "last_good_v_0_weight")
    assert graph.has_edge(saved.name, moved.name)


# --- draws ----------------------------------------------------------------------------------------------

COUPLED = "softplus(z1 - z2) + softplus(z2 - z3) - y1*z1"
DRAWN = {
    "mse kfac": (6, "elementwise: (g_sampled through noise from nothing)"),
    "bce_with_logits kfac": (6, "elementwise: (g_sampled through noise from h_layer_4_F)"),
    "bce_with_logits kfra": (12, "elementwise: (g_projected through signs from h_layer_4_F)"),
    "cross_entropy kfac": (
        8,
        "categorical: (g_sampled through noise, y_sampled from p, target_mass)",
    ),
    "cross_entropy kfac_rp": (
        9,
        "reduction: (signed_root, signed_root_sum through signs from p)",
    ),
    f"{COUPLED} kfac_rp": (17, "elementwise: (signs from nothing)"),
}
"""The launches of the curvature and the one that draws, by loss and method. With draws by torch they were one
more, two for a class; of a coupled loss they are as many, because torch reads the signs."""


@pytest.mark.parametrize("of", DRAWN)
def test_draws_are_computed_where_they_are_used(of: str) -> None:
    loss, method = of.rsplit(" ", 1)
    found, declared = traced(chain(), loss)
    program = step_program(found.graph, declared, Settings.from_options(method=method))
    launches = schedule(program).phases["curvature"]
    count, drawing = DRAWN[of]
    assert drawing in [unnumbered(str(launch)) for launch in launches]
    assert len(launches) == count


def drawing(users: str) -> list[str]:
    """The launches of a product and a draw ``[N, 3]``, and of what uses the draw."""
    b, (u, v) = ProgramBuilder(step_phases(PHASES)), sympy.symbols("u v", real=True)
    with b.phase("gradient"):
        h = b.emit(
            ir.Affine(), b.leaf("input", "0", ("N", 6)), b.leaf("parameter", "w", (3, 6)), name="h"
        )
        noise = b.emit(ir.Random("normal", ("N", 3)), name="noise")
        a = b.pointwise(u + v if users == "product" else u**2, {u: h, v: noise}, name="a")
        b.results["a"] = a.name
        if users == "two":
            b.results["c"] = b.pointwise(v + 1, {v: noise}, name="c").name
            b.results["d"] = b.emit(ir.Total(), b.pointwise(v**2, {v: noise}, name="d")).name
    with b.phase("curvature"):
        if users == "later":
            b.results["e"] = b.pointwise(v + 1, {v: noise}, name="e").name
    launches = schedule(b.finish()).phases
    return [str(launch) for phase in launches.values() for launch in phase]


def test_a_draw_joins_whatever_kernel_uses_it() -> None:
    assert drawing("product") == ["gemm: (a through h, noise from x0, w)"]


@pytest.mark.parametrize("users", ["two", "later"])
def test_a_draw_that_several_kernels_use_reaches_memory(users: str) -> None:
    launches = drawing(users)
    assert "elementwise: (noise from nothing)" in launches
    assert sum("from noise" in launch for launch in launches) == (2 if users == "two" else 1)
