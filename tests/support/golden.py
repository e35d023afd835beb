"""Emitted source and schedules held against files, trimmed to the mathematics of a step.

``pytest tests/emit tests/triton --refresh-golden`` writes the files anew; the change is read in ``git diff``.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import torch
from small_programs import chain
from torch import nn
from training import NETWORKS, compiled, samples

from gncompile.training.trainer import Trainer

FOLDER = Path(__file__).parents[1] / "emit" / "golden"
MATHEMATICS = ("gradient", "curvature", "average", "invert", "direction", "update")
"""The phases that are kept; the others check, damp and report."""
OPTIONS: dict[str, Any] = {"trace_correction": False, "momentum": False, "layer_steps": 0}
"""Without draws, which are other ones in each backend."""
GOLDEN = {"chain": chain, "gated": NETWORKS["gated"]}


def network(name: str) -> nn.Module:
    """One of :data:`GOLDEN` with seeded weights."""
    torch.manual_seed(0)
    return GOLDEN[name]().double()


def trained(name: str, backend: str) -> tuple[Trainer, list[float]]:
    """A trainer after two steps, and their losses."""
    one = compiled(network(name), "kfra", backend=backend, **OPTIONS)
    x, y = samples(16)
    return one, [float(one.step(x, y).loss) for _ in range(2)]


def mathematics(step: str, kernels: str = "") -> str:
    """The phases of an emitted step, after the launches they run and the device functions of these."""
    (bind,) = _functions(step)
    phases = [node for node in _functions(bind) if _name(node) in MATHEMATICS]
    wanted = set(re.findall(r"run\((\w+)\)", "\n".join(phases)))
    assigned = [node for node in _nodes(bind, ast.Assign) if node.split(" = ")[0].strip() in wanted]
    called = set(re.findall(r"kernels\.(\w+)", "\n".join(assigned)))
    tiles = [node for node in _functions(kernels) if _name(node) in called]
    return "\n\n".join([*tiles, *assigned, *phases]) + "\n"


def _nodes(text: str, kind: type[ast.stmt]) -> list[str]:
    """The lines of a text's statements of a kind, or of those in its only function."""
    dedented = re.sub(r"^    ", "", text, flags=re.MULTILINE) if text.startswith("    ") else text
    tree = ast.parse(dedented)
    lines = dedented.split("\n")
    body = tree.body
    if len(body) == 1 and isinstance(body[0], ast.FunctionDef):
        body = body[0].body
    found = [node for node in body if isinstance(node, kind)]
    return ["\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in found]


def _functions(text: str) -> list[str]:
    return _nodes(text, ast.FunctionDef)


def _name(function: str) -> str:
    (name,) = re.findall(r"^\s*def (\w+)", function, re.MULTILINE)
    return name


def assert_golden(name: str, text: str, refresh: bool) -> None:
    """Compare a text with its file, or write the file."""
    path = FOLDER / f"{name}.txt"
    if refresh:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, f"{path.name} differs; --refresh-golden writes it anew"
