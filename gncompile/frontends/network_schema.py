"""``[network]`` of a model file: a chain of affine layers, or nodes that form any DAG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from .schema_types import MAX_NODES, Index, Name, Record, Size

HIDDEN = (64, 64)
"""Hidden layers of a network that a file says nothing about: enough for tables of tens of columns."""
CODE = 8
"""Features of an autoencoder's code where a file does not say; half the inputs, if those are fewer."""


class NodeRecord(Record):
    """What every ``[[network.node]]`` has: a name, and the names of the nodes it reads."""

    name: Name = Field(description="what other nodes, reports and checkpoints call it")
    inputs: Annotated[tuple[Name, ...], Field(max_length=MAX_NODES)] = Field(
        description="the nodes that it reads, each further up; `input` is the network's input"
    )


class Linear(NodeRecord):
    """``y = transfer(x Wᵀ + b)`` with ``W: [size, in]``."""

    op: Literal["linear"]
    size: Size = Field(description="outputs")
    bias: bool = Field(default=True, description="whether there is a b")
    transfer: str = Field(
        default="identity", description="a transfer function's name, or an expression in u"
    )


class Pointwise(NodeRecord):
    """``y = expression``, elementwise in the inputs, which it calls by name (a single one also ``u``)."""

    op: Literal["pointwise"]
    expression: str | None = Field(
        default=None, description="a formula in the names of the inputs, as `value * sigmoid(gate)`"
    )
    transfer: str | None = Field(
        default=None,
        description="in place of an expression: the transfer function of a single input",
    )

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
    start: Index = Field(description="the first feature, counted from 0")
    stop: Size = Field(description="the feature after the last one")


class Select(NodeRecord):
    """``y_j = x_index[j]``: features of the input in any order, also repeated."""

    op: Literal["select"]
    index: Annotated[tuple[Index, ...], Field(max_length=10**6)] = Field(
        description="features of the input, counted from 0"
    )


Node = Annotated[Linear | Pointwise | Concat | Slice | Select, Field(discriminator="op")]


class Layers(Record):
    """A chain of affine layers, each followed by a transfer function; ``hidden`` or ``layers`` are its sizes.

    ``transfer`` is one for all layers but the last, or a list with one for each of those. ``output`` follows
    the last layer. ``code_layer`` is the number of the layer, counted from 1, that stays linear.
    """

    hidden: Annotated[tuple[Size, ...], Field(max_length=MAX_NODES - 1)] | None = Field(
        default=None,
        description="sizes of the hidden layers; inputs and outputs follow from the data and the loss. "
        f"Default: `{list(HIDDEN)}`, of an autoencoder `[64, {CODE}, 64]` with `code_layer = 2`",
    )
    layers: Annotated[tuple[Size, ...], Field(min_length=2, max_length=MAX_NODES + 1)] | None = (
        Field(
            default=None,
            description="in place of `hidden`: all sizes, `[inputs, …, outputs]`, checked against the data",
        )
    )
    transfer: str | Annotated[tuple[str, ...], Field(max_length=MAX_NODES)] = Field(
        default="tanh",
        description="the transfer function of the hidden layers, a name or an expression in u; or a list "
        "with one for each",
    )
    output: str = Field(
        default="identity", description="the transfer function after the last layer"
    )
    code_layer: Size | None = Field(
        default=None, description="number of the hidden layer, counted from 1, that stays linear"
    )
    bias: bool = Field(default=True, description="whether the layers have biases")

    @model_validator(mode="after")
    def _fits(self) -> Layers:
        if self.hidden is not None and self.layers is not None:
            raise ValueError("give either layers or hidden")
        hidden = len(self.hidden_sizes)
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
    def hidden_sizes(self) -> tuple[int, ...]:
        """Sizes of the hidden layers."""
        return self.layers[1:-1] if self.layers else HIDDEN if self.hidden is None else self.hidden

    @property
    def complete(self) -> bool:
        """Whether the sizes of input and output are given."""
        return self.layers is not None

    def completed(self, inputs: int, outputs: int, autoencoder: bool = False) -> Layers:
        """The same chain with all sizes, those of input and output from the data where they are not given."""
        if self.layers is not None:
            return self
        hidden, code = self.hidden_sizes, self.code_layer
        unsaid = not self.model_fields_set & {"hidden", "transfer", "code_layer"}
        if autoencoder and unsaid:
            hidden, code = (64, min(CODE, max(1, inputs // 2)), 64), 2
        layers = (inputs, *hidden, outputs)
        return self.model_copy(update={"layers": layers, "hidden": None, "code_layer": code})

    def nodes(self) -> tuple[Node, ...]:
        """The chain, complete, as nodes ``layer1``, ``layer2``, …"""
        assert self.layers is not None
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

    @property
    def input_size(self) -> int:
        """Features of one sample, of a complete chain."""
        assert self.layers is not None
        return self.layers[0]


class Nodes(Record):
    """Any DAG; ``input`` names the network's input, the last node is its output."""

    input_size: Size | None = Field(
        default=None, description="features of one sample; by default those of the data"
    )
    node: Annotated[tuple[Node, ...], Field(min_length=1, max_length=MAX_NODES)] = Field(
        description="`[[network.node]]` tables, in an order in which each reads those further up"
    )

    @property
    def complete(self) -> bool:
        """Whether the size of the input is given."""
        return self.input_size is not None

    def completed(self, inputs: int, outputs: int, autoencoder: bool = False) -> Nodes:
        """The same nodes with the size of the input, from the data where it is not given."""
        return self if self.complete else self.model_copy(update={"input_size": inputs})

    def nodes(self) -> Sequence[Node]:
        """The nodes in order."""
        return self.node


def _form(network: Any) -> str:
    chain = isinstance(network, Layers) or (isinstance(network, dict) and "node" not in network)
    return "<layers>" if chain else "<nodes>"


Network = Annotated[
    Annotated[Layers, Tag("<layers>")] | Annotated[Nodes, Tag("<nodes>")], Discriminator(_form)
]

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
