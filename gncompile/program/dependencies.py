"""What must run before what within a phase, memory that is overwritten included."""

from __future__ import annotations

import networkx as nx

from . import operations as ir
from .collectives import MESSAGES
from .operations import Leaf
from .step_program import StepProgram


def dependencies(program: StepProgram, phase: str) -> nx.DiGraph:
    """A graph on the names of the phase's instructions, views left out; edges run from earlier to later.

    Besides a value's use after its definition, an instruction that overwrites a tensor comes after all
    that read or wrote it before::

        step ← a d            edges: d → step,
        w ← w + step                 step → w (reads it),  saved → w (reads what w overwrites)

    Messages to other processes keep their order, which has to be the same on all.
    """
    home = program.storage
    graph = nx.DiGraph()
    writer: dict[str, str] = {}
    readers: dict[str, set[str]] = {}
    message = ""
    for i in program.phase(phase):
        if isinstance(i.op, ir.VIEWS):
            continue
        graph.add_node(i.name)
        reads = {home[name] for name in i.inputs if not _is_free_leaf(program, name)}
        written = home[i.name]
        before = {writer[tensor] for tensor in (*reads, written) if tensor in writer}
        before |= readers.pop(written, set())
        if isinstance(i.op, MESSAGES):
            before |= {message} - {""}
            message = i.name
        graph.add_edges_from((name, i.name) for name in before)
        for tensor in reads:
            readers.setdefault(tensor, set()).add(i.name)
        writer[written] = i.name
        readers[written] = set()
    return graph


def _is_free_leaf(program: StepProgram, name: str) -> bool:
    """Whether a value is a leaf that no step writes, such as the batch."""
    op = program[name].op
    return isinstance(op, Leaf) and op.kind in ("input", "target", "constant", "scalar")
