"""What ``forward`` returns: one tensor, or several that become one output side by side."""

from __future__ import annotations

import math

import numpy as np
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from ..errors import TraceError
from ..graph.nodes import Origin, Output
from .importer import Importer
from .values import Activation


def network_output(program: ExportedProgram, importer: Importer) -> tuple[Activation, Output]:
    """The activation that the module returns, and what it consists of."""
    outputs = [s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    found = {node.name: value for node, value in importer.values.items()}
    values = [found.get(getattr(spec.arg, "name", "")) for spec in outputs]
    parts = [value for value in values if isinstance(value, Activation)]
    if len(parts) < len(values) or not parts:
        raise TraceError(
            "the network's output is no function of its input, or is not a real number",
            instead="return the logits or the regression output",
        )
    structure = program.call_spec.out_spec
    if structure.num_nodes == 1:
        return parts[0], Output()
    returned = structure.unflatten(range(len(parts)))
    named = isinstance(returned, dict)
    keys, places = list(returned), list(returned.values()) if named else list(returned)
    if not all(type(place) is int for place in places):
        raise TraceError(
            f"forward returns a structure of {len(outputs)} outputs within each other",
            instead="return one tensor [N, ...], or a tuple, a list or a dict of tensors",
        )
    names = [str(key) for key in keys] if named else [str(number) for number in places]
    index = np.arange(sum(math.prod(part.shape) for part in parts))
    ordered = [parts[place] for place in places]
    whole = importer.builder.select("outputs", ordered, index, index.shape, Origin())
    shapes = [part.shape for part in ordered]
    return whole, Output(tuple(zip(names, shapes, strict=True)), named)
