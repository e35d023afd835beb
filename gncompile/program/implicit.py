"""Rows that are seen in a batch of grids, so that a moment of them needs no memory for them.

::

    FeaturesLast(Patches[g](x))         →    x, g                          what a weight sees at every place
    Transpose(Unflatten[C, T](x))       →    x, one tap at T points        the channels at every place
"""

from __future__ import annotations

from ..graph.windows import Geometry, Window
from . import convolutions as grids
from . import operations as ir
from .step_program import StepProgram


def grid_behind(program: StepProgram, rows: str) -> tuple[str, Geometry] | None:
    """The batch of grids ``[.., C·P]`` that a value's rows are seen in, and how; None if they are in none."""
    view = program[rows]
    source = program[view.inputs[0]] if view.inputs else view
    match view.op, source.op:
        case grids.FeaturesLast(), grids.Patches(geometry):
            return source.inputs[0], geometry
        case ir.Transpose(), ir.Unflatten((channels, places), -1):
            window = Window((places,), (1,), (1,), (0,), (1,))
            return source.inputs[0], Geometry(window, channels, channels)
    return None
