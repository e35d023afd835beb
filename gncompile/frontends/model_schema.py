"""What a TOML model file may contain: one frozen record a section, validated by pydantic.

::

    [data]       see gncompile.data.DataSpec; all the other sections may be left out
    [model]      name
    [network]    hidden or layers, transfer, code_layer, output, bias   a chain of layers, or
                 input_size and [[network.node]] tables                 any DAG, which reads upwards
    [loss]       name, or expression in z and y (or z1, z2, … and y1, …) with targets, negative_curvature
    [training]   how long, with what, what is watched; [training.options] for the trainer
    [transfer.NAME]   expression in x (or u), parameters, domain, doc

docs/model_file.md is written from these records by docs/model_file_reference.py.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ..data.data_sets import DataSpec
from .network_schema import VARIANTS as VARIANTS
from .network_schema import Network
from .schema_types import EVERYWHERE, MAX_NODES, Interval, Name, Record, Size, ordered
from .schema_types import Seed as Seed
from .training_schema import Training


class Model(Record):
    """``[model]``: what the model is called."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        description="a title for people, which run folders are named after. Default: the file's own name"
    )

    @field_validator("name")
    @classmethod
    def _one_line(cls, name: str) -> str:
        if not name.isprintable():
            raise ValueError("a name is one line of text without control characters")
        return name


class LossSection(Record):
    """``[loss]``: a name, or an expression averaged over samples; see :func:`gncompile.register_loss`.

    ``e(z, y)`` is summed over outputs; ``e(z1, …, zK, y1, …)`` couples them. ``outputs``, ``targets`` and
    ``negative_curvature`` are those of ``register_loss``.
    """

    name: str | None = Field(
        default=None,
        description="`mse`, `cross_entropy`, `bce_with_logits`, `huber`, `smooth_l1`, `log_cosh`, "
        "`poisson_nll`, `soft_margin`, or a registered one. Default: `cross_entropy` for classes, else `mse`",
    )
    expression: str | None = Field(
        default=None,
        description="in place of a name: a formula, convex in the output `z`, with the target `y`, summed "
        "over outputs; in `z1`, `z2`, … and `y1`, … it couples them",
    )
    outputs: Size | None = Field(
        default=None,
        description="outputs of an expression in `z1`, … Default: the highest number in it",
    )
    targets: Interval = Field(
        default=EVERYWHERE, description="the targets for which the expression is convex"
    )
    negative_curvature: Literal["refuse", "clip"] = Field(
        default="refuse",
        description="`clip` leaves out what is not convex of an expression that couples outputs",
    )

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


class Transfer(Record):
    """``[transfer.NAME]``: a function for this file only, as :func:`gncompile.register_transfer` declares.

    Nothing outside the file sees it. It goes before a function of the same name that the process has
    registered, so that a file means the same everywhere; the compiler's own names cannot be redefined.
    """

    expression: str = Field(
        description="a formula in `x` or `u`, the parameters, and functions declared above it"
    )
    parameters: dict[Name, float] = Field(
        default={}, description="numbers that the expression calls by name"
    )
    domain: Interval = Field(default=EVERYWHERE, description="the inputs that it is checked on")
    doc: Annotated[str, Field(max_length=2000)] = Field(
        default="", description="a sentence for reports"
    )

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

    model: Model | None = Field(default=None, description="the model's name")
    data: DataSpec = Field(description="the data, and what is to be predicted from what")
    network: Network | None = Field(default=None, description="the network")
    loss: LossSection | None = Field(default=None, description="what is minimised")
    training: Training = Field(description="how it is trained")
    transfer: Annotated[dict[Name, Transfer], Field(max_length=MAX_NODES)] = Field(
        default={}, description="transfer functions of this file"
    )
