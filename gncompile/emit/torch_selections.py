"""Selections and their adjoints as torch statements: slices, strided copies and sums, else index tensors."""

from __future__ import annotations

import math

from ..program import operations as ir
from ..program.specs import Spec
from ..program.step_program import Instruction
from .literals import literal
from .strided import Loops, loops_of
from .torch_operations import File, compact, writes


@writes(ir.Gather)
def _gather(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    """Runs of consecutive features become slice copies."""
    assert isinstance(i.op, ir.Gather)
    index, lines, start = i.op.index, [], 0
    sizes = [int(s.shape[-1]) for s in specs]
    runs = _runs(index, sizes)
    if len(runs) <= 16:
        for source, first, count in runs:
            part = f"{out}[..., {start}:{start + count}]"
            if source < 0:
                lines.append(f"{part}.fill_({literal(i.op.fill)})")
            else:
                lines.append(f"{part}.copy_({v[source]}[..., {first}:{first + count}])")
            start += count
        return lines
    offset = 0
    if -1 in index:
        lines.append(f"{out}.fill_({literal(i.op.fill)})")
    for number, (name, size) in enumerate(zip(v, sizes, strict=True)):
        here = [(j, k - offset) for j, k in enumerate(index) if offset <= k < offset + size]
        offset += size
        if not here:
            continue
        if (loops := loops_of(*zip(*here, strict=True))) is not None:
            lines.append(f"linalg.strided_copy({name}, {_loops(loops)}, out={out})")
        else:
            to = w.index(i.name, f"to{number}", [j for j, _ in here])
            picked = w.index(i.name, f"from{number}", [k for _, k in here])
            lines.append(f"{out}.index_copy_(-1, {to}, {name}.index_select(-1, {picked}))")
    return lines


def _runs(index: tuple[int, ...], sizes: list[int]) -> list[tuple[int, int, int]]:
    """``(input, first, count)`` for maximal runs of consecutive features; input -1 for the fill."""
    places = []
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    for k in index:
        number = max((n for n, s in enumerate(starts) if s <= k), default=-1)
        places.append((number, k - starts[number] if number >= 0 else 0))
    runs: list[tuple[int, int, int]] = []
    for number, place in places:
        if runs and runs[-1][0] == number and (number < 0 or runs[-1][1] + runs[-1][2] == place):
            runs[-1] = (number, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((number, place, 1))
    return runs


@writes(ir.Scatter)
def _scatter(w: File, i: Instruction, out: str, v: list[str], specs: list[Spec]) -> list[str]:
    op = i.op
    assert isinstance(op, ir.Scatter)
    kept = [j for j, place in enumerate(op.index) if place >= 0]
    places = [op.index[j] for j in kept]
    if len(kept) == op.size and places == list(range(op.size)) and compact(kept)[0] == "r":
        picks = {-1: "...", 0: "", -2: "..."}[op.axis]
        span = f"{kept[0]}:{kept[0] + len(kept)}"
        view = {"...": f"[..., {span}]" if op.axis == -1 else f"[..., {span}, :]", "": f"[{span}]"}[
            picks
        ]
        return [f"{out}.copy_({v[0]}{view})"]
    if op.axis == -1 and kept and (lines := _scattered_by_loops(op, places, kept, out, v[0])):
        return lines
    to = w.index(i.name, "to", places)
    source = w.index(i.name, "from", kept)
    return [f"linalg.scatter({v[0]}, {to}, {source}, {literal(op.axis)}, out={out})"]


def _scattered_by_loops(
    op: ir.Scatter, places: list[int], kept: list[int], out: str, source: str
) -> list[str] | None:
    """One strided copy, or a sum along the loops that stay at one place; None where it is neither."""
    loops = loops_of(places, kept)
    if loops is None:
        return None
    moving = math.prod(n for n, s in zip(loops.sizes, loops.to_strides, strict=True) if s)
    reached = len(set(places))
    if moving != reached:
        return None
    how = "copy" if moving == len(kept) else "sum"
    lines = [f"linalg.strided_{how}({source}, {_loops(loops)}, out={out})"]
    return lines if reached == op.size else [f"{out}.zero_()", *lines]


def _loops(loops: Loops) -> str:
    return ", ".join(
        map(literal, (loops.sizes, loops.to_strides, loops.strides, loops.to, loops.source))
    )
