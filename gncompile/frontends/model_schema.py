"""What a TOML model file may contain: one frozen record a section, validated by pydantic.

::

    [model]      name
    [data]       see gncompile.data.DataSpec
    [network]    layers, transfer, code_layer, output, bias     a chain of affine layers, or
                 input_size and [[network.node]] tables         any DAG, in any order that reads upwards
    [loss]       name, or expression in z and y (or z1, z2, … and y1, …) with targets, negative_curvature
    [training]   method, batch_size, updates or epochs, seed, dtype, tune; [training.options] for the trainer
    [transfer.NAME]   expression in x (or u), parameters, domain, doc

Every number and every list has a bound here, so that no file asks for more than a machine could ever hold.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    field_validator,
    model_validator,
)

from ..data.data_sets import DataSpec

Size = Annotated[int, Field(gt=0, le=10**9)]
Index = Annotated[int, Field(ge=0, lt=10**9)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
MAX_NODES = 400
"""Of one model file; compiling takes longer than in proportion to them."""
Interval = tuple[float, float]
EVERYWHERE = (-math.inf, math.inf)
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]


def ordered(interval: Interval) -> Interval:
    """``interval`` if it has a lower and a higher end."""
    low, high = interval
    if not low < high:
        raise ValueError(f"[{low:g}, {high:g}] is no interval: give a lower and a higher bound")
    return interval


class Record(BaseModel):
    """A frozen section that refuses unknown keys and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Model(Record):
    """``[model]``; ``name`` is a title for people, which files are named after."""

    name: Annotated[str, Field(min_length=1, max_length=200)]

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("a name is one line of text without control characters")
        return name


class NodeRecord(Record):
    """What every ``[[network.node]]`` has: a name, and the names of the nodes it reads."""

    name: Name
    inputs: Annotated[tuple[Name, ...], Field(max_length=MAX_NODES)]


class Linear(NodeRecord):
    """``y = transfer(x Wᵀ + b)`` with ``W: [size, in]``."""

    op: Literal["linear"]
    size: Size
    bias: bool = True
    transfer: str = "identity"


class Pointwise(NodeRecord):
    """``y = expression``, elementwise in the inputs, which it calls by name (a single one also ``u``)."""

    op: Literal["pointwise"]
    expression: str | None = None
    transfer: str | None = None

    @model_validator(mode="after")
    def _one_function(self) -> Pointwise:
        if (self.expression is None) == (self.transfer is None):
            raise ValueError("give either expression or transfer")
        if self.transfer is not None and len(self.inputs) != 1:
            raise ValueError("a transfer function has one input; give an expression of the inputs")
        return self


class Concat(NodeRecord):
    """The inputs' features side by side."""

    op: Literal["concat"]


class Slice(NodeRecord):
    """Features ``start`` to ``stop - 1`` of the input."""

    op: Literal["slice"]
    start: Index
    stop: Size


class Select(NodeRecord):
    """``y_j = x_index[j]``: features of the input in any order, also repeated."""

    op: Literal["select"]
    index: Annotated[tuple[Index, ...], Field(max_length=10**6)]


Node = Annotated[Linear | Pointwise | Concat | Slice | Select, Field(discriminator="op")]


class Layers(Record):
    """``layers = [in, …, out]``: a chain of affine layers, each followed by a transfer function.

    ``transfer`` is one for all layers but the last, or a list with one for each of those. ``output`` follows
    the last layer. ``code_layer`` is the number of the layer, counted from 1, that stays linear.
    """

    layers: Annotated[tuple[Size, ...], Field(min_length=2, max_length=MAX_NODES + 1)]
    transfer: str | tuple[str, ...] = "tanh"
    output: str = "identity"
    code_layer: Size | None = None
    bias: bool = True

    @model_validator(mode="after")
    def _fits(self) -> Layers:
        hidden = len(self.layers) - 2
        if isinstance(self.transfer, tuple) and len(self.transfer) != hidden:
            raise ValueError(
                f"transfer lists {len(self.transfer)} functions for {hidden} hidden layers"
            )
        if self.code_layer is not None and self.code_layer > hidden:
            raise ValueError(
                f"code_layer = {self.code_layer}, but there are {hidden} hidden layers"
            )
        return self

    @property
    def input_size(self) -> int:
        """Features of one sample."""
        return self.layers[0]

    @property
    def node(self) -> tuple[Node, ...]:
        """The chain as nodes ``layer1``, ``layer2``, …"""
        hidden = len(self.layers) - 2
        listed = isinstance(self.transfer, tuple)
        transfers = [*(self.transfer if listed else [self.transfer] * hidden), self.output]
        if self.code_layer is not None:
            transfers[self.code_layer - 1] = "identity"
        return tuple(
            Linear(
                op="linear",
                name=f"layer{number}",
                inputs=(f"layer{number - 1}" if number > 1 else "input",),
                size=size,
                bias=self.bias,
                transfer=transfer,
            )
            for number, (size, transfer) in enumerate(
                zip(self.layers[1:], transfers, strict=True), start=1
            )
        )


class Nodes(Record):
    """``[[network.node]]`` tables; ``input`` names the network's input, the last node is its output."""

    input_size: Size
    node: Annotated[tuple[Node, ...], Field(min_length=1, max_length=MAX_NODES)]


def _form(network: Any) -> str:
    chain = isinstance(network, Layers) or (isinstance(network, dict) and "node" not in network)
    return "<layers>" if chain else "<nodes>"


Network = Annotated[
    Annotated[Layers, Tag("<layers>")] | Annotated[Nodes, Tag("<nodes>")], Discriminator(_form)
]


class LossSection(Record):
    """``[loss]``: a name, or an expression averaged over samples; see :func:`gncompile.register_loss`.

    ``e(z, y)`` is summed over outputs; ``e(z1, …, zK, y1, …)`` couples them. ``outputs``, ``targets`` and
    ``negative_curvature`` are those of ``register_loss``.
    """

    name: str | None = None
    expression: str | None = None
    outputs: Size | None = None
    targets: Interval = EVERYWHERE
    negative_curvature: Literal["refuse", "clip"] = "refuse"

    @field_validator("targets")
    @classmethod
    def _ordered(cls, targets: Interval) -> Interval:
        return ordered(targets)

    @model_validator(mode="after")
    def _one_loss(self) -> LossSection:
        if (self.name is None) == (self.expression is None):
            raise ValueError("give either name or expression")
        if self.name is not None and self.model_fields_set > {"name"}:
            raise ValueError("a loss given by name takes no other keys")
        return self

    @property
    def text(self) -> str:
        """The name or the expression."""
        return self.name or self.expression or ""


class Training(Record):
    """``[training]``: how long and with what; ``options`` go to ``gncompile.compile`` as they are.

    ``output_bias = "mean"`` starts the last layer's bias at the best constant prediction. ``tune`` is that of
    ``compile``; a ``.json`` file is relative to the model file.
    """

    method: str | dict[str, str] = "kfra"
    batch_size: Size = 1000
    updates: Size | None = None
    epochs: Size | None = None
    seed: Seed = 0
    dtype: Literal["float32", "float64"] = "float32"
    output_bias: Literal["zero", "mean"] = "zero"
    tune: str = "cached"
    options: dict[str, JsonValue] = {}

    @model_validator(mode="after")
    def _one_length(self) -> Training:
        if (self.updates is None) == (self.epochs is None):
            raise ValueError("give either updates or epochs")
        return self


class Transfer(Record):
    """``[transfer.NAME]``: a function for this file only, as :func:`gncompile.register_transfer` declares.

    Nothing outside the file sees it. It goes before a function of the same name that the process has
    registered, so that a file means the same everywhere; the compiler's own names cannot be redefined.
    """

    expression: str
    parameters: dict[Name, float] = {}
    domain: Interval = EVERYWHERE
    doc: Annotated[str, Field(max_length=2000)] = ""

    @field_validator("doc")
    @classmethod
    def _text(cls, doc: str) -> str:
        if not all(c.isprintable() or c in "\n\t" for c in doc):
            raise ValueError("a text without control characters")
        return doc

    @field_validator("domain")
    @classmethod
    def _ordered(cls, domain: Interval) -> Interval:
        return ordered(domain)


class Sections(Record):
    """A whole model file."""

    model: Model
    data: DataSpec
    network: Network
    loss: LossSection
    training: Training
    transfer: Annotated[dict[Name, Transfer], Field(max_length=MAX_NODES)] = {}


VARIANTS: dict[str, type[Record]] = {
    "<layers>": Layers,
    "<nodes>": Nodes,
    "linear": Linear,
    "pointwise": Pointwise,
    "concat": Concat,
    "slice": Slice,
    "select": Select,
}
"""The tags pydantic puts into the path of an error, and the records they stand for."""
