"""Values share a buffer only while nobody needs both."""

from __future__ import annotations

import pytest
from small_programs import METHODS, chain, program_of
from training import NETWORKS

from gncompile.program.buffers import plan_buffers
from gncompile.program.launches import schedule
from gncompile.program.operations import VIEWS
from gncompile.program.schedule import Schedule
from gncompile.program.step_program import StepProgram


def steps(program: StepProgram, order: Schedule | None) -> list[list[str]]:
    """The names of all instructions in the order they run, those of one launch together."""
    if order is None:
        return [[i.name] for phase in program.phases for i in program.phase(phase)]
    return [
        [i.name for kernel in launch.kernels for i in kernel.instructions]
        for launches in order.phases.values()
        for launch in launches
    ]


@pytest.mark.parametrize("launched", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_buffer_holds_one_value_at_a_time(name: str, method: str, launched: bool) -> None:
    """Replays the program on names: whatever is read must still be in its buffer."""
    program = program_of(NETWORKS[name](), method, l2=1e-3)
    order = schedule(program) if launched else None
    home, plan = program.storage, plan_buffers(program, order)
    holds: dict[str, str] = {}
    for step in steps(program, order):
        inside = {home[n] for n in step}
        written = {n: plan[n] for n in step if n in plan}
        assert len(set(written.values())) == len(written), "two values of one launch share a buffer"
        for n in step:
            if isinstance(program[n].op, VIEWS):
                continue
            for source in {home[s] for s in program[n].inputs} & set(plan):
                if source not in inside:
                    assert holds[plan[source]] == source, f"{n} reads {source}, which is gone"
                    assert plan[source] not in written.values(), f"{n} overwrites what it reads"
        holds |= {buffer: n for n, buffer in written.items()}


def test_results_and_what_other_phases_read_keep_their_buffer() -> None:
    program = program_of(chain())
    plan = plan_buffers(program)
    assert all(plan.get(name, name) == name for name in program.results.values())
    shared = [name for name, buffer in plan.items() if name != buffer]
    assert shared
    for name in shared:
        readers = {i.phase for i in program if name in i.inputs}
        assert readers == {program[name].phase}
        assert program[plan[name]].spec.shape == program[name].spec.shape


def test_phases_hand_on_their_buffers() -> None:
    program = program_of(chain())
    plan = plan_buffers(program)
    assert any(program[buffer].phase != program[name].phase for name, buffer in plan.items())
