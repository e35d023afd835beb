"""The pass that makes a program one of many processes: what is reduced, where, and in how few messages."""

from __future__ import annotations

import pytest
import sympy
import torch
from training import network

from gncompile.app.api import understand
from gncompile.base.settings import Settings
from gncompile.emit.step_source import emit_step
from gncompile.errors import CompileError, InternalError
from gncompile.explain.explain import explain, summary
from gncompile.pipeline import step_program
from gncompile.program import operations as ir
from gncompile.program.builder import ProgramBuilder
from gncompile.program.collectives import AllGather, AllReduce, Reduced
from gncompile.program.costs import CostModel
from gncompile.program.ownership import own_work, shared_work
from gncompile.program.phases import Phase, Repeat
from gncompile.program.reductions import for_processes
from gncompile.program.specs import Structure, matrix
from gncompile.program.step_program import StepProgram
from gncompile.runtime.source_check import checked

u, v = sympy.symbols("u v", real=True)


def _builder() -> ProgramBuilder:
    return ProgramBuilder((Phase("gradient"), Phase("later", sees=("gradient",))))


def _text(program: StepProgram) -> list[str]:
    return [str(i) for i in program if not isinstance(i.op, ir.Leaf)]


def test_the_picture_of_its_docstring() -> None:
    builder = _builder()
    x, g = builder.leaf("input", "0", ("N", 3)), builder.leaf("input", "1", ("N", 2))
    with builder.phase("gradient"):
        gradient = builder.emit(ir.Moment(), g, x, name="grad")
        loss = builder.emit(ir.Total(mean=True), g, name="loss")
        builder.results["loss"] = loss.name
        builder.results["delta"] = builder.pointwise(u**2, {u: gradient}, name="delta").name
    program = for_processes(builder.finish())
    assert _text(program) == [
        "grad = Moment(x1, x0) : [2, 3]",
        "loss = Total[True](x1) : []",
        "bucket_gradient = AllReduce[('N', 'N')](grad, loss) : [7]",
        "grad_all = Reduced[[2, 3]](bucket_gradient) : [2, 3]",
        "loss_all = Reduced[6, []](bucket_gradient) : []",
        "delta = φ[u**2](grad_all) : [2, 3]",
    ]
    assert program.results == {"loss": "loss_all", "delta": "delta"}


def test_a_symmetric_matrix_goes_as_a_triangle_and_sums_wait_for_each_other() -> None:
    builder = _builder()
    x = builder.leaf("input", "0", ("N", 4))
    with builder.phase("gradient"):
        one, other = builder.emit(ir.Moment(), x), builder.emit(ir.Moment(), builder.scaled(x, 2.0))
        both = builder.scaled(builder.add(one, other), 0.5)
        builder.results["Q"] = both.name
    (bucket,) = [i for i in for_processes(builder.finish()) if isinstance(i.op, AllReduce)]
    assert bucket.inputs == (both.name,)
    assert bucket.spec.shape == (10,)


def test_what_reads_the_samples_again_has_a_round_of_its_own() -> None:
    builder = _builder()
    x = builder.leaf("input", "0", ("N", 4))
    with builder.phase("gradient"):
        mean = builder.emit(ir.Mean(), x, name="mean")
        centred = builder.pointwise(u - v, {u: x, v: mean}, name="centred")
        late = builder.emit(ir.Moment(), centred, name="covariance")
        early = builder.emit(ir.Moment(), x, name="second")
        for value in (late, early):
            builder.results[value.name] = value.name
    buckets = [i for i in for_processes(builder.finish()) if isinstance(i.op, AllReduce)]
    assert [i.inputs for i in buckets] == [("mean", "second"), ("covariance",)]


def test_states_that_are_overwritten_and_draws_keep_their_order() -> None:
    builder = _builder()
    x = builder.leaf("input", "0", ("N", 4))
    with builder.phase("gradient"):
        state = builder.state("count", builder.emit(ir.Total(), x).spec)
        first = builder.emit(ir.Random("sign", ("N", 4)), name="first")
        mean = builder.emit(ir.Mean(), builder.pointwise(u * v, {u: x, v: first}), name="mean")
        total = builder.emit(ir.Total(), builder.pointwise(u * v, {u: mean, v: state}), name="t")
        second = builder.emit(ir.Random("normal", ("N", 4), 1), name="second")
        later = builder.emit(ir.Mean(), second, name="later")
        builder.results |= {"t": total.name, "later": later.name}
        builder.pointwise(u + 1, {u: state}, into=state, name="count_now")
    names = [i.name for i in for_processes(builder.finish())]
    assert names.index("t") < names.index("count_now")
    assert names.index("first") < names.index("second")


def test_phases_that_go_by_columns_are_reduced_after_their_last_run() -> None:
    builder = ProgramBuilder(
        (Phase("columns", repeat=Repeat.COLUMNS), Phase("last", sees=("columns",)))
    )
    x = builder.leaf("input", "0", ("N", 4))
    with builder.phase("columns"):
        moment = builder.emit(ir.Moment(), x)
        state = builder.state("G_sum", moment.spec)
        total = builder.add(state, moment, name="G", into=state)
    with builder.phase("last"):
        builder.results["trace"] = builder.emit(ir.Trace(), total).name
    program = for_processes(builder.finish())
    assert [phase.name for phase in program.step] == ["columns", "columns_joined", "last"]
    assert program["G"].into == "G_sum"
    assert program["G_all"].phase == "columns_joined"


def test_operations_that_it_does_not_know_are_an_error_and_not_wrong() -> None:
    builder = _builder()
    x = builder.leaf("input", "0", ("N", 4))
    with builder.phase("gradient"):
        builder.results["x"] = builder.emit(ir.MatMul(transpose_a=True), x, x).name
    with pytest.raises(InternalError, match="takes the samples away, and it is not known how"):
        for_processes(builder.finish())


def _step(name: str, **options: object) -> StepProgram:
    model = network(name)
    traced, loss, _ = understand(model, "mse", torch.zeros(2, 6, dtype=torch.float64))
    return step_program(traced.graph, loss, Settings.from_options(**options))


def test_rows_of_the_exact_solver_that_meet_are_refused() -> None:
    with pytest.raises(CompileError, match="exact_form='dual' has a row for every pair of samples"):
        for_processes(_step("plain", solver="exact", exact_form="dual"))


@pytest.mark.parametrize("method", ["kfra", "kflr", "kfac"])
def test_a_step_takes_few_messages(method: str) -> None:
    """One of gradients, one of factors a phase that makes some, one of every set of scalars."""
    program = for_processes(_step("residual", method=method))
    costs = CostModel(program, 100)
    messages = {name: costs.sent(name)[1] for name in program.phases if costs.sent(name)[1]}
    assert set(messages.values()) == {1}
    factors = {"kfra": {"curvature"}, "kfac": {"curvature"}, "kflr": {"columns_joined"}}[method]
    inputs = {"share_inputs", "whole_inputs"}
    scalars = {
        "compare", "quadratic", "plain_quadratic", "layer_quadratic", "trial", "judge_trial", "evaluate"
    }  # fmt: skip
    assert messages.keys() - scalars == {"gradient", "gradient_noise"} | factors | inputs


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_both_backends_write_it(backend: str) -> None:
    program = for_processes(_step("residual", method="kfac", gather_noise=0.4, guarded=True))
    text = emit_step(program, backend=backend).text
    checked(text)
    reductions = [i for i in program if isinstance(i.op, AllReduce)]
    assert text.count("memory.all_reduce(") == len(reductions)
    assert 'memory.random("normal", noise, "F")' in text


def test_summaries_state_what_is_sent_and_formulas_name_it() -> None:
    traced, loss, _ = understand(network(), "mse", torch.zeros(2, 6, dtype=torch.float64))
    settings = Settings.from_options()
    program = for_processes(step_program(traced.graph, loss, settings))
    text = summary(traced, loss, settings, program, batch=100, width=200)
    (line,) = (line for line in text.splitlines() if line.startswith("gradient  "))
    sent = CostModel(program, 100).sent("gradient")[0]
    assert line.split()[-5:] == [str(sent), "B", "in", "1", "messages"]
    assert "of one process, which sends " in text
    derived = explain(traced, loss, settings, program, batch=100)
    assert "bucket_gradient = sums over processes(" in derived


def test_no_value_of_the_program_is_left_partial() -> None:
    """Whatever a host reads, and every state, follows from the values of all processes."""
    program = for_processes(_step("gated"))
    partial: set[str] = set()
    for i in program:
        apart = any(program[n].spec.samples or n in partial for n in i.inputs)
        if apart and not isinstance(i.op, AllReduce | Reduced) and not i.spec.samples:
            partial.add(i.name)
            assert i.into is None, i
    assert partial
    assert partial.isdisjoint(program.results.values())


def _inverting(*sizes: int) -> StepProgram:
    builder = _builder()
    with builder.phase("gradient"):
        for size in sizes:
            spec = matrix(Structure.SYMMETRIC, size)
            q, inverse = (builder.state(f"{kind}.{size}", spec) for kind in ("Q", "inverse"))
            damping = builder.leaf("scalar", "batch_size", ())
            builder.emit(ir.DampedInverse(), q, damping, into=inverse, name=f"inverse_{size}")
    return builder.finish()


def test_every_matrix_is_inverted_by_one_process_and_the_longest_goes_first() -> None:
    program = _inverting(200, 400, 240, 20)
    parts = [own_work(program, rank, 2) for rank in range(2)]
    of = [[i.into for i in p if isinstance(i.op, ir.DampedInverse)] for p in parts]
    everyone = program["inverse_20_2"].into
    assert [len(each) for each in of] == [2, 3]
    assert [program[str(n)].spec.size for n in of[1]] == [200, 240, 20]
    assert of[0][-1] == of[1][-1] == everyone
    gathers = [next(i for i in p if isinstance(i.op, AllGather)) for p in parts]
    assert [g.op for g in gathers] == [
        AllGather(rank, 80200, 80200 + 49020, (400**3, 200**3 + 240**3), places)
        for rank, places in enumerate([(0,), (80200, 80200 + 20100)])
    ]
    read = {i.into: i.op for i in parts[0] if isinstance(i.op, Reduced)}
    assert read == {i.into: i.op for i in parts[1] if isinstance(i.op, Reduced)}
    assert sorted(op.start for op in read.values()) == [0, 80200, 80200 + 200 * 201 // 2]
    assert CostModel(parts[1], 1).sent("gradient") == (80200 * 4, 1)
    assert shared_work(parts[1]) == [
        "gradient: processes 0 to 1 compute 64 M, 21.8 MFLOP for all; this is process 1"
    ]


def test_a_process_may_own_nothing() -> None:
    part = own_work(_inverting(250, 260), 2, 3)
    (gather,) = (i for i in part if isinstance(i.op, AllGather))
    assert gather.inputs == ()
    checked(emit_step(part).text)
