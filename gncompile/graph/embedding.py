"""Tables of rows that whole numbers look up: embeddings, and one-hot rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layers import LayerOp
from .model_graph import ModelGraph
from .nodes import Input, Op, Select


@dataclass(frozen=True)
class Embedding(LayerOp):
    """``y_s = W[i_s]``, ``W: [V, d]``, for whole numbers ``i_s`` at ``places``.

    An affine layer of one-hot rows. The row ``padding`` gets no gradient, as torch has it.
    """

    places: int = 1
    classes: int = 1
    padding: int | None = None

    def fits(self, size: int, sizes: list[int]) -> bool:
        return sizes == [self.places] and size % self.places == 0

    def matrix(self, size: int, sizes: list[int]) -> tuple[int, int]:
        return self.classes, size // self.places

    def places_in(self, size: int, sizes: list[int]) -> int:
        return self.places

    @property
    def reversed(self) -> bool:
        return True

    def apply(self, weight: Tensor, bias: Tensor | None, *inputs: Tensor) -> Tensor:
        if self.padding is not None:  # its row is a constant
            padding = weight[self.padding].detach()
            weight = torch.cat([weight[: self.padding], padding[None], weight[self.padding + 1 :]])
        return weight[inputs[0].long()].flatten(1)

    def input_rows(self, *inputs: Tensor) -> Tensor:
        rows = torch.nn.functional.one_hot(inputs[0].long(), self.classes).to(inputs[0])
        if self.padding is not None:
            rows[..., self.padding] = 0
        return rows

    def describe(self, inputs: tuple[str, ...]) -> str:
        at = f" at {self.places} places" if self.places > 1 else ""
        return f"embedding[{self.layer}]({inputs[0]}), {self.classes} rows{at}"


@dataclass(frozen=True)
class OneHot(Op):
    """``y_sk = 1`` where ``k = i_s``, else 0, for whole numbers ``i_s`` below ``classes``."""

    classes: int

    def fits(self, size: int, sizes: list[int]) -> bool:
        return len(sizes) == 1 and size == sizes[0] * self.classes

    def describe(self, inputs: tuple[str, ...]) -> str:
        return f"one_hot[{self.classes}]({inputs[0]})"

    def plain(self, *inputs: Tensor) -> Tensor:
        rows = torch.nn.functional.one_hot(inputs[0].long(), self.classes)
        return rows.to(inputs[0]).flatten(1)


def classes_of(graph: ModelGraph, name: str) -> tuple[int, ...]:
    """Below how many each of an input's whole numbers has to be; 0 where no table reads it.

    That is as far as they are seen to go: through selections, not through arithmetic.
    """
    if name not in graph:  # an input of what is not compiled
        return ()
    size = graph[name].size
    features: dict[str, Sequence[int | None]] = {name: range(size)}  # which of the input's they are
    least: dict[int, int] = {}
    for node in graph:
        if not features.keys() & set(node.inputs):
            continue
        read = [i for n in node.inputs for i in features.get(n, [None] * graph[n].size)]
        if isinstance(node.op, Select):
            features[node.name] = [None if i < 0 else read[i] for i in node.op.index]
        elif isinstance(node.op, Embedding | OneHot):
            for i in read:
                if i is not None:
                    least[i] = min(least.get(i, node.op.classes), node.op.classes)
    return tuple(least.get(i, 0) for i in range(size))


def is_whole(op: Op) -> bool:
    """Whether this is an input of whole numbers."""
    return isinstance(op, Input) and op.whole
