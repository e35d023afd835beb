"""Work that processes share out: whose it is, what is sent, and what only one of them keeps."""

from __future__ import annotations

import pytest
import torch

from gncompile.emit.step_source import emit_step
from gncompile.program import operations as ir
from gncompile.program.builder import ProgramBuilder
from gncompile.program.collectives import AllGather, CongruenceRows, Reduced
from gncompile.program.costs import CostModel
from gncompile.program.ownership import own_work, shared_work
from gncompile.program.phases import Phase
from gncompile.program.specs import Spec, Structure, matrix
from gncompile.program.step_program import StepProgram
from gncompile.runtime.draws import TorchDraws
from gncompile.runtime.executable import EmittedStep
from gncompile.runtime.memory import Memory, dense
from gncompile.runtime.reference import ReferenceStep
from gncompile.runtime.source_check import checked
from gncompile.runtime.source_files import load_source


def _builder() -> ProgramBuilder:
    return ProgramBuilder((Phase("gradient"), Phase("later", sees=("gradient",))))


def _work(program: StepProgram, phase: str) -> list[str]:
    return [f"{i.name} = {type(i.op).__name__}" for i in program.phase(phase)]


def _directions(*sizes: int, kept: bool = False) -> StepProgram:
    """The picture of the module: the inverse of a factor, and a direction that a later phase reads."""
    builder = _builder()
    gradients, inverses = [], []
    for n, size in enumerate(sizes):
        spec, alone = matrix(Structure.SYMMETRIC, size), str(n) if kept else ""
        q = builder.state(f"Q.{n}", spec, kept_with=alone)
        inverses.append(builder.state(f"Q_inverse.{n}", spec, "identity", kept_with=alone))
        gradients.append(builder.leaf("parameter", f"g{n}", (size, size)))
        with builder.phase("gradient"):
            trace = builder.emit(ir.Trace(), q, name=f"trace_{n}")
            builder.emit(ir.DampedInverse(), q, trace, into=inverses[-1], name=f"inverse_{n}")
    with builder.phase("later"):
        for n, (gradient, inverse) in enumerate(zip(gradients, inverses, strict=True)):
            delta = builder.emit(ir.Precondition(), gradient, inverse, inverse, name=f"delta_{n}")
            builder.results[f"slope.{n}"] = builder.emit(
                ir.Dot(), delta, gradient, name=f"s_{n}"
            ).name
    return builder.finish()


def test_directions_are_made_by_owner_where_they_are_worth_a_message() -> None:
    first, second = (own_work(_directions(150, 200), rank, 2) for rank in range(2))
    assert _work(first, "later") == [
        "delta_1 = Precondition", "gathered_later = AllGather", "delta_0_all = Reduced",
        "s_0 = Dot", "s_1 = Dot",
    ]  # fmt: skip
    assert first["s_0"].inputs == ("delta_0_all", "g0")
    assert second["s_1"].inputs == ("delta_1_all", "g1")
    assert CostModel(first, 1).sent("later") == (200 * 200 * 4, 1)
    lone, small = _directions(300), _directions(40, 40)
    for program in (lone, small):
        own = own_work(program, 0, 2)
        assert all(own.phase(phase) == program.phase(phase) for phase in program.phases)


def test_a_kept_state_is_on_its_owner_alone() -> None:
    program = _directions(20, 30, kept=True)
    first, second = (own_work(program, rank, 2) for rank in range(2))
    assert first.states.keys() == {"Q.1", "Q_inverse.1"}
    assert second.states.keys() == {"Q.0", "Q_inverse.0"}
    assert first.kept == second.kept
    assert {key: rank for key, (rank, _) in first.kept.items()} == {
        "Q.0": 1, "Q_inverse.0": 1, "Q.1": 0, "Q_inverse.1": 0
    }  # fmt: skip
    assert _work(first, "gradient") == ["trace_1 = Trace", "inverse_1 = DampedInverse"]
    # What is sent is what others read: here the slopes alone, which no direction leaves its process for.
    assert _work(first, "later") == [
        "delta_1 = Precondition", "s_1 = Dot", "gathered_later = AllGather", "s_0_all = Reduced"
    ]  # fmt: skip
    assert first.results == {"slope.0": "s_0_all", "slope.1": "s_1"}
    assert (
        "averages and inverses of factors: processes 0 to 1 keep 7.0 KiB, 3.1 KiB"
        in shared_work(first)
    )
    for part in (first, second):
        checked(emit_step(part).text)
    alone = own_work(program, 0, 1)
    assert not alone.kept
    assert alone.states == program.states


def test_messages_keep_their_order_though_one_process_has_nothing_to_send() -> None:
    for rank in range(3):
        part = own_work(_directions(150, 200), rank, 3)
        assert [i.phase for i in part if isinstance(i.op, AllGather)] == ["later"]
        assert sum(isinstance(i.op, Reduced) for i in part) == (2 if rank == 2 else 1)


def test_few_values_of_many_processes_are_added_up() -> None:
    program = _directions(150, 200)
    for size, (sent, elements) in ((3, (40_000, 120_000)), (4, (62_500, 62_500))):
        parts = [own_work(program, rank, size) for rank in range(size)]
        gathers = [i for part in parts for i in part if isinstance(i.op, AllGather)]
        assert {i.spec.shape for i in gathers} == {(elements,)}
        assert all(CostModel(part, 1).sent("later") == (4 * sent, 1) for part in parts)
        assert [len(i.inputs) for i in gathers] == [1, 1, 0, 0][:size]


def _congruent(size: int) -> StepProgram:
    """``G ← Wᵀ diag(m) W`` and ``H ← Vᵀ G V``, a chain."""
    builder = _builder()
    with builder.phase("gradient"):
        w, v = (builder.leaf("parameter", name, (size, size)) for name in ("w", "v"))
        g = builder.congruence(w, builder.state("m", matrix(Structure.DIAGONAL, size)), w, name="G")
        builder.results["H"] = builder.congruence(v, g, v, name="H").name
    return builder.finish()


def test_a_long_product_is_made_by_rows() -> None:
    program = _congruent(401)
    assert list(own_work(program, 0, 3)) == list(program)
    for rank, (first, count) in enumerate(((0, 134), (134, 134), (268, 133))):
        part = own_work(program, rank, 3, by_rows=True)
        rows = [i for i in part if isinstance(i.op, CongruenceRows)]
        assert [i.op for i in rows] == [CongruenceRows(first, count)] * 2
        assert [i.inputs for i in rows] == [("w", "m"), ("v", "G")]
        assert not any(isinstance(i.op, ir.Multiply | ir.SymmetricProduct) for i in part)
        assert CostModel(part, 1).sent("gradient") == (2 * 134 * 401 * 4, 2)
        checked(emit_step(part).text)
    small = _congruent(100)
    assert list(own_work(small, 0, 3, by_rows=True)) == list(small)


@pytest.mark.parametrize(
    "structure", [Structure.SYMMETRIC, Structure.DIAGONAL, Structure.SCALED_IDENTITY]
)
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_rows_are_those_of_the_product(structure: Structure, backend: str) -> None:
    generator, spec = torch.Generator().manual_seed(0), matrix(structure, 5)
    w = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    m = torch.randn([int(d) for d in spec.shape], generator=generator, dtype=torch.float64)
    m = m + m.mT if m.dim() == 2 else m
    builder = _builder()
    with builder.phase("gradient"):
        inputs = builder.leaf("parameter", "w", (5, 4)), builder.state("m", spec)
        rows = builder.state("rows", Spec((2, 4)))
        builder.emit(CongruenceRows(1, 2), *inputs, into=rows, name="r")
    program, cpu = builder.finish(), torch.device("cpu")
    memory = Memory(program, {"w": w}, {}, torch.float64, cpu, TorchDraws(0, cpu))
    memory.states["m"].copy_(m)
    dims = dict.fromkeys("NFQLS", 1)
    if backend == "torch":
        module, _ = load_source(emit_step(program).text, "rows")
        EmittedStep(module.bind, program, memory, dims).run("gradient")
    else:
        ReferenceStep(program, memory, dims).run("gradient")
    whole = w.mT @ dense(m, spec) @ w
    torch.testing.assert_close(memory.states["rows"], whole[1:3])
