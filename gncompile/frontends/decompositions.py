"""Decompose an exported program without showing torch the user's names.

``run_decompositions`` builds a module by writing ``self.<path>`` for every parameter and buffer and running
that text. A path may hold a keyword (``class``), which is then no Python, or a quote (a key of an
``nn.ModuleDict``, made from a data set say), after which it runs whatever follows. So every path is
exchanged for a plain name before, and put back after.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any

from torch.export import ExportedProgram


def decomposed(program: ExportedProgram, table: Mapping[Any, Any]) -> ExportedProgram:
    """``program.run_decompositions(table)`` with parameters, buffers and constants of any name."""
    targets = [str(s.target) for s in program.graph_signature.input_specs if s.target is not None]
    if all(map(_is_plain, targets)):
        return program.run_decompositions(dict(table))
    plain = {target: f"target_{number}" for number, target in enumerate(dict.fromkeys(targets))}
    _rename(program, plain)
    result = program.run_decompositions(dict(table))
    for each in (program, result):
        _rename(each, {new: old for old, new in plain.items()})
    return result


def _is_plain(target: str) -> bool:
    """Whether a path means itself in source text: identifiers and numbers between dots."""
    parts = target.split(".")
    return all(re.fullmatch(r"\w+", p, re.ASCII) and not keyword.iskeyword(p) for p in parts)


def _rename(program: ExportedProgram, names: Mapping[str, str]) -> None:
    signature = program.graph_signature
    for spec in (*signature.input_specs, *signature.output_specs):
        if spec.target is not None:
            spec.target = names.get(spec.target, spec.target)
    for held in (program.state_dict, program.constants):
        for name in [name for name in held if name in names]:
            held[names[name]] = held.pop(name)
