"""What a checkpoint must agree with: a model's graph, parameters, loss, dtype and method, as plain data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import expected_got
from ..graph.model_graph import ModelGraph
from ..graph.nodes import Select, describe

Fingerprint = dict[str, Any]


def graph_lines(graph: ModelGraph, flat: bool = False) -> list[str]:
    """One line a node with its expression and shape, its name replaced by its number.

    With ``flat`` the shape of the output alone: what is computed before is rows of features.
    """
    numbers = {node.name: f"v{number}" for number, node in enumerate(graph)}
    lines = []
    for node in graph:
        text = describe(replace(node, inputs=tuple(numbers[name] for name in node.inputs)))
        if isinstance(node.op, Select):
            text += f" #{hashlib.sha256(repr(node.op).encode()).hexdigest()[:12]}"
        shape = [node.size] if flat and node is not graph.output else list(node.shape)
        lines.append(f"{numbers[node.name]} = {text} : {shape}")
    return lines


def differences(expected: Fingerprint, got: Fingerprint) -> list[str]:
    """What differs, each with two aligned lines; the first differing line of the graph only."""
    found = [
        f"{key}\n{expected_got(expected[key], got.get(key))}"
        for key in ("method", "dtype", "loss")
        if expected[key] != got.get(key)
    ]
    key = "trained parameters"
    found += shape_differences(expected[key], got.get(key, {}))
    return found or _line_differences(expected["graph"], got.get("graph", []))


def graph_differences(expected: ModelGraph, got: ModelGraph) -> list[str]:
    """The first line in which two graphs differ, if they do."""
    return _line_differences(graph_lines(expected, flat=True), graph_lines(got, flat=True))


def shape_differences(expected: Mapping[str, object], got: Mapping[str, object]) -> list[str]:
    """Names on one side only, and other shapes."""
    return [
        f"{name}\n{expected_got(expected.get(name, 'not there'), got.get(name, 'not there'))}"
        for name in {**expected, **got}
        if expected.get(name) != got.get(name)
    ]


def _line_differences(expected: list[str], got: list[str]) -> list[str]:
    if expected == got:
        return []
    longest = max(len(expected), len(got))
    padded = [lines + ["nothing"] * (longest - len(lines)) for lines in (expected, got)]
    here, there = next((e, g) for e, g in zip(*padded, strict=True) if e != g)
    return [f"graph\n{expected_got(here, there)}"]
