"""What processes send each other as calls of the memory's group (``runtime/processes.py``)."""

from __future__ import annotations

from ..program import collectives
from ..program.specs import Spec, Structure
from ..program.step_program import Instruction
from .literals import dimension, literal, quoted
from .torch_operations import File, writes


@writes(collectives.AllReduce)
def _all_reduce(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, collectives.AllReduce)
    lines, start = [], 0
    for name, over, spec in zip(v, i.op.over, specs, strict=True):
        triangle = collectives.is_triangle(spec)
        samples = quoted(over) if over == collectives.SUM else f'"{dimension(over)}"'
        how = f"{literal(start)}, {samples}, {literal(triangle)}"
        lines.append(f"memory.pack({name}, {out}, {how})")
        start += collectives.sent_elements(spec)
    return [*lines, f"memory.all_reduce({out})"]


@writes(collectives.AllGather)
def _all_gather(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, collectives.AllGather)
    lines = []
    for name, spec, start in zip(v, specs, i.op.places, strict=True):
        triangle = collectives.is_triangle(spec)
        lines.append(f"memory.place({name}, {out}, {literal(start)}, {literal(triangle)})")
    if not i.op.room:
        return [f"{out}.zero_()", *lines, f"memory.add_up({out})"]
    return [*lines, f"memory.all_gather({out}, {literal(i.op.rank)}, {literal(i.op.room)})"]


@writes(collectives.CongruenceRows)
def _rows(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, collectives.CongruenceRows)
    (w_, m), first = v, i.op.first
    rows = f"{w_}[:, {literal(first)}:{literal(first + i.op.count)}]"
    match specs[1].structure:
        case Structure.SCALED_IDENTITY:
            product = f"torch.mul({rows}, {m})"
        case Structure.DIAGONAL:
            product = f"torch.mul({rows}, {m}[:, None])"
        case _:
            product = f"torch.mm({m}, {rows})"
    return [f"torch.mm({product}.mT, {w_}, out={out})"]


@writes(collectives.Reduced)
def _reduced(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    assert isinstance(i.op, collectives.Reduced)
    return [f"memory.unpack({v[0]}, {literal(i.op.start)}, {out}, {literal(i.op.triangle)})"]
