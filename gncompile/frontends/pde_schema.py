"""What a model file with ``[pde]`` may contain in place of data and a loss: equations, and where they hold.

::

    [pde]              box, outputs, unknowns, resample_every, reference
    [pde.term.NAME]    equation, points, faces or at, draw, weight, loss, scale
    [network]          as for data; inputs and outputs follow from the box and the outputs
    [training]         updates, method, what is watched; [training.options] for the trainer
    [model], [transfer.NAME]   as for data
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from ..data.domains import How
from .model_schema import Model, Transfer
from .network_schema import Network
from .schema_types import MAX_NODES, Interval, Name, Record, Seed, Size

Equation = Annotated[str, Field(max_length=4000)]
MOST = 100
"""Coordinates, outputs, unknowns and terms of a file, each."""


class PdeTerm(Record):
    """``[pde.term.NAME]``: an equation and the points of the box where it holds.

    Without ``faces`` and ``at`` these lie inside.
    """

    equation: Equation | Annotated[tuple[Equation, ...], Field(min_length=1, max_length=MOST)] = (
        Field(
            description="what is to be 0, in coordinates, outputs and their derivatives: `u__t - u__x__x`; "
            "or a list of several"
        )
    )
    points: Annotated[int, Field(gt=0, le=10**7)] = Field(description="how many")
    faces: bool | Annotated[tuple[Name, ...], Field(min_length=1, max_length=MOST)] = Field(
        default=False,
        description="`true`: points on all faces of the box; a list of coordinates: where these are at "
        "their ends",
    )
    at: dict[Name, float] = Field(
        default={}, description="points on one face, or a cut through the box: `{t = 0}`"
    )
    draw: How = Field(default="sobol", description="Sobol's sequence, independent draws, or a grid")
    weight: Annotated[float, Field(gt=0, lt=math.inf)] = Field(
        default=1.0, description="of the term's mean loss in the objective"
    )
    loss: Literal["mse", "soft_l1", "huber", "geman_mcclure"] = Field(
        default="mse", description="of a residual; by all but `mse` outliers count less"
    )
    scale: Annotated[float, Field(gt=0, lt=math.inf)] | None = Field(
        default=None,
        description="the size of a residual from which it counts less. Default: 1; `mse` takes none",
    )

    @model_validator(mode="after")
    def _together(self) -> PdeTerm:
        if self.faces and self.at:
            raise ValueError("give either faces or at")
        if self.scale is not None and self.loss == "mse":
            raise ValueError("give a loss to the scale: mse, the default, takes none")
        return self


class Pde(Record):
    """``[pde]``: a box of named coordinates, the outputs of the network, and the terms."""

    box: Annotated[dict[Name, Interval], Field(min_length=1, max_length=MOST)] = Field(
        description="the coordinates, the network's inputs, in order: `{x = [0, 1], t = [0, 2]}`"
    )
    outputs: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MOST)] = Field(
        default=("u",), description="names of the network's outputs"
    )
    term: Annotated[dict[Name, PdeTerm], Field(min_length=1, max_length=MOST)] = Field(
        description="tables `[pde.term.NAME]`, see below"
    )
    unknowns: Annotated[dict[Name, float], Field(max_length=MOST)] = Field(
        default={}, description="coefficients that are to be found, with their first values"
    )
    resample_every: Size | None = Field(
        default=None, description="steps after which points are drawn anew. Default: never"
    )
    reference: (
        Equation | Annotated[tuple[Equation, ...], Field(min_length=1, max_length=MOST)] | None
    ) = Field(
        default=None,
        description="the solution in the coordinates, of several outputs a list: the report tells the "
        "relative L2 error",
    )


class PdeTraining(Record):
    """``[training]`` of a file with ``[pde]``."""

    updates: Size = Field(default=300, description="length of the training in steps")
    method: str | dict[str, str] = Field(
        default="kflr",
        description="the curvature method of the solver `kronecker`, which is taken where this is given, or "
        "a baseline",
    )
    validate_every: Size = Field(
        default=10, description="steps between two looks at the terms and the unknowns"
    )
    log: Annotated[tuple[Literal["csv", "tensorboard"], ...], Field(max_length=2)] = Field(
        default=(), description="where the numbers are also written to, in the run folder"
    )
    seed: Seed = Field(default=0, description="draws the weights and the points")
    dtype: Literal["float32", "float64"] = Field(
        default="float64", description="the floating point numbers computed with"
    )
    tune: str = Field(default="cached", description="as for data")
    options: dict[str, JsonValue] = Field(
        default={},
        description="`[training.options]`: settings of the optimiser; `solver` among them",
    )


class PdeSections(Record):
    """A whole model file with ``[pde]``."""

    model: Model | None = Field(default=None, description="the model's name")
    pde: Pde = Field(description="the equations")
    network: Network | None = Field(default=None, description="the network")
    training: PdeTraining = Field(default=PdeTraining(), description="how it is trained")
    transfer: Annotated[dict[Name, Transfer], Field(max_length=MAX_NODES)] = Field(
        default={}, description="transfer functions of this file"
    )
