"""What a value of the traced program is: an activation, a parameter, a constant, a condition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import fx

from ..graph.computed import Computed

VALUES = "values of tensors"
"""What numbers vary on that were taken out of tensors."""

Shape = tuple[int, ...]
Args = dict[str, Any]


@dataclass(frozen=True)
class Activation:
    """A graph node's result; ``shape`` is the per-sample shape the user sees at this point.

    ``whole`` says that the user's tensor holds whole numbers: it has no slope, and tables may look it up.
    """

    name: str
    shape: Shape
    whole: bool = False


@dataclass(frozen=True)
class Weight:
    """A registered parameter, as it is or transposed; affine layers want ``[out, in]``."""

    name: str
    parameter: torch.Tensor
    transposed: bool = False
    computed: Computed | None = None
    """What it is computed of, where it is no parameter; ``parameter`` only has its shape then."""

    @property
    def trainable(self) -> bool:
        return self.parameter.requires_grad

    @property
    def tensor(self) -> torch.Tensor:
        return self.parameter.detach().mT if self.transposed else self.parameter.detach()

    @property
    def mT(self) -> Weight:
        return replace(self, transposed=not self.transposed)


@dataclass(frozen=True)
class Shared:
    """A graph node's result that all samples share, made of parameters alone; ``shape`` has no batch."""

    name: str
    shape: Shape


@dataclass(frozen=True)
class OfParameters:
    """What ``node`` computes of parameters alone, by operators that no node of the graph stands for."""

    name: str
    node: fx.Node

    @property
    def shape(self) -> Shape:
        return tuple(self.node.meta["val"].shape)


@dataclass(frozen=True)
class Constant:
    """A tensor that does not depend on the input, nor on the batch.

    ``literal`` is set when every entry is that one number, written in the user's code. With ``batched``,
    dimension 0 is the batch, all rows are equal, and ``tensor`` is one of them.
    """

    name: str
    tensor: torch.Tensor
    literal: float | None = None
    batched: bool = False

    def rows(self, samples: int) -> torch.Tensor:
        """The tensor in a batch of so many samples."""
        return self.tensor.expand(samples, *self.tensor.shape[1:]) if self.batched else self.tensor

    @property
    def mT(self) -> Constant:
        return replace(self, tensor=self.tensor.mT)


@dataclass(frozen=True)
class Turned:
    """An activation, or a batched constant, whose batch the user has at dimension ``dim``, not in front."""

    value: Activation | Constant
    dim: int
    batched: ClassVar[bool] = True

    @property
    def name(self) -> str:
        return self.value.name


@dataclass(frozen=True)
class Varying:
    """A tensor of no input that is another one in another batch; ``node`` made it, ``on`` tells of what.

    Activations may not meet it: the compiled network would hold its value in one batch as a constant.
    """

    node: fx.Node
    on: str


@dataclass(frozen=True)
class Condition:
    """True where ``margin > 0``, or where it is not when ``holds_if_positive`` is False."""

    margin: Activation
    holds_if_positive: bool


@dataclass(frozen=True)
class Refused:
    """The result of an operator that was refused: what reads it is not looked at any more."""


Value = (
    Activation | Weight | Shared | OfParameters | Constant | Turned | Condition | Varying | Refused
)


def values_in(args: Any) -> Iterator[Value]:
    """Every value in nested arguments, in order."""
    if isinstance(args, Value):
        yield args
    elif isinstance(args, Mapping):
        yield from values_in(list(args.values()))
    elif isinstance(args, list | tuple):
        for item in args:
            yield from values_in(item)


def activations_in(args: Any) -> list[Activation]:
    """The activations among nested arguments, in order, repeated ones included."""
    return [value for value in values_in(args) if isinstance(value, Activation)]


def reshaped(value: Value, shape: Shape) -> Value:
    """The same features in the same order under another per-sample shape."""
    if isinstance(value, Condition):
        return replace(value, margin=replace(value.margin, shape=shape))
    assert isinstance(value, Activation)
    return replace(value, shape=shape)
