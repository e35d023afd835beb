"""Operations on grids as calls of :mod:`gncompile.runtime.convolutions`."""

from __future__ import annotations

from typing import Protocol

from ..errors import InternalError
from ..graph.windows import Geometry, Window
from ..program import convolutions as grids
from ..program.step_program import Instruction
from .literals import literal
from .torch_operations import File


class GridFile(File, Protocol):
    """What these writers ask of the file besides."""

    def buffered(self, name: str) -> bool:
        """Whether memory waits for a value; else what computes it brings its own."""

    def constant(self, role: str, text: str) -> str:
        """The name, after its role, of what ``text`` makes."""


def write_windowed(w: GridFile, i: Instruction, out: str, v: list[str]) -> list[str]:
    """The statement of an operation on grids; of a convolution that no memory waits for, an assignment."""
    match i.op:
        case grids.Convolve(g):
            operands = ", ".join([*v, "None"][:3])
            return [_computed(w, i, out, f"convolve({operands}, {_convolution(w, g)}")]
        case grids.ConvolveAdjoint(g):
            return [_computed(w, i, out, f"adjoint({v[0]}, {v[1]}, {_convolution(w, g)}")]
        case grids.ConvolveGradient(g, homogeneous, coordinate):
            call = f"gradient({v[0]}, {v[1]}, {_convolution(w, g)}, {literal(homogeneous)}"
            call += "" if coordinate == 1.0 else f", coordinate={literal(coordinate)}"
        case grids.Patches(g):
            call = f"patches({v[0]}, {_convolution(w, g)}"
        case grids.MaxPool(window):
            call = f"max_pool({v[0]}, {_window(w, window)}"
        case grids.SumPool(window):
            call = f"sum_pool({v[0]}, {_window(w, window)}"
        case grids.Winners(window):
            call = f"winners({v[0]}, {v[1]}, {_window(w, window)}"
        case grids.Pick(window):
            call = f"pick({v[0]}, {v[1]}, {_window(w, window)}"
        case grids.Spread(window):
            call = f"spread({v[0]}, {v[1] if len(v) > 1 else None}, {_window(w, window)}"
        case grids.BlockDiagonal(blocks):
            call = f"block_diagonal({v[0]}, {literal(blocks)}"
        case _:
            raise InternalError(f"the torch backend does not know {i.op}")
    return [f"convolutions.{call}, out={out})"]


def _computed(w: GridFile, i: Instruction, out: str, call: str) -> str:
    if w.buffered(i.name):
        return f"convolutions.{call}, out={out})"
    return f"{out} = convolutions.{call})"


def _convolution(w: GridFile, g: Geometry) -> str:
    words = [f"{name}={literal(value)}" for name, value in channel_words(g).items()]
    text = f"convolutions.convolution({', '.join([_window(w, g.window), *words])})"
    return w.constant("convolution", text)


def _window(w: GridFile, of: Window) -> str:
    words = [f"{name}={literal(value)}" for name, value in window_words(of).items()]
    return w.constant("window", f"convolutions.window({', '.join(words)})")


def channel_words(g: Geometry) -> dict[str, int]:
    """The keywords of a convolution between so many channels, but for its window."""
    groups = {"groups": g.groups} if g.groups > 1 else {}
    return {"inputs": g.inputs, "outputs": g.outputs, **groups}


def window_words(of: Window) -> dict[str, tuple[int, ...] | bool]:
    """The keywords of a window; what it has by default is left out."""
    fields: dict[str, tuple[int, ...] | bool] = {"size": of.size, "kernel": of.kernel}
    fields |= {"stride": of.stride} if set(of.stride) != {1} else {}
    fields |= {"padding": of.padding} if any(of.padding) else {}
    fields |= {"dilation": of.dilation} if set(of.dilation) != {1} else {}
    return fields | ({"ceil": True} if of.ceil else {})
