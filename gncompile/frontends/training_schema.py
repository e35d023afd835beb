"""``[training]`` of a model file: how long, with what, and what is watched meanwhile."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from .schema_types import Record, Seed, Size

EPOCHS, PATIENCE = 200, 20
"""The length of a training that a file says nothing about, which its early stop mostly ends."""
MONITORED = "validation_loss"
OF_VALIDATION = "early_stop", "keep_best", "validate_every", "metrics"
"""Keys that ask something of a validation."""

Metric = Literal["accuracy", "r2", "rmse", "mae", "auc"]


class EarlyStopping(Record):
    """``early_stop``: the training ends where the validation does not improve any more."""

    patience: Size = Field(
        default=PATIENCE, description="validations without a better value that end it"
    )
    monitor: Annotated[str, Field(max_length=100)] = Field(
        default=MONITORED,
        description="the validation's loss, `validation_loss`, or one of `metrics`",
    )
    min_delta: Annotated[float, Field(ge=0, lt=math.inf)] = Field(
        default=0.0, description="by how much a value has to be better to count"
    )


class Training(Record):
    """``[training]``: how long and with what; ``options`` go to ``gncompile.compile`` as they are."""

    method: str | dict[str, str] = Field(
        default="kfra",
        description='the curvature method: `"kfra"`, `"kflr"`, `"kfac"`, `"kfac_rp"`, `"empirical"`, '
        '`"auto"`; a baseline, `"adam"` or `"sgd"`; or a table from patterns of layers to methods',
    )
    batch_size: Size = Field(
        default=1000, description="samples of a step; all of them where there are fewer"
    )
    updates: Size | None = Field(default=None, description="length of the training in steps")
    epochs: Size | None = Field(
        default=None,
        description=f"length in passes over the data, in place of `updates`. If neither is given: {EPOCHS} "
        f"epochs, and `early_stop = {PATIENCE}` unless the file says otherwise",
    )
    early_stop: EarlyStopping | None = Field(
        default=None,
        description="end where validation does not get better: a number of validations, a table, or `false`",
    )
    keep_best: bool | None = Field(
        default=None,
        description="keep the weights of the best validation, not the last ones. Default: with `early_stop`",
    )
    validate_every: Size | None = Field(
        default=None, description="steps between validations. Default: an epoch"
    )
    metrics: Annotated[tuple[Metric, ...], Field(max_length=10)] = Field(
        default=(), description="what is computed of the validation's predictions besides the loss"
    )
    log: Annotated[tuple[Literal["csv", "tensorboard"], ...], Field(max_length=2)] = Field(
        default=(), description="where loss and metrics are also written to, in the run folder"
    )
    seed: Seed = Field(
        default=0, description="draws the weights, the order of the samples and KFAC's targets"
    )
    dtype: Literal["float32", "float64"] = Field(
        default="float32", description="the floating point numbers computed with"
    )
    output_bias: Literal["zero", "mean"] = Field(
        default="zero",
        description='`"mean"` starts the last layer\'s bias at the best constant prediction',
    )
    tune: str = Field(
        default="cached",
        description='the settings of operations (`tune` of `gncompile.compile`): `"cached"`, `"quick"`, '
        '`"full"`, `"off"`, or a `.json` file beside the model file',
    )
    options: dict[str, JsonValue] = Field(
        default={}, description="`[training.options]`: settings of the optimiser, listed below"
    )

    @field_validator("early_stop", mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if given is False:
            return None
        whole = isinstance(given, int) and not isinstance(given, bool)
        return {"patience": given} if whole else given

    @model_validator(mode="after")
    def _fits(self) -> Training:
        if self.updates is not None and self.epochs is not None:
            raise ValueError("give either updates or epochs")
        monitored = (MONITORED, *self.metrics)
        if self.early_stop is not None and self.early_stop.monitor not in monitored:
            raise ValueError(
                f"early_stop monitors {self.early_stop.monitor[:50]!r}, which is not computed: use one of "
                f"{', '.join(monitored)}, or list it in metrics"
            )
        return self


def with_length(training: Mapping[str, Any], validates: bool = True) -> Mapping[str, Any]:
    """A file's ``[training]``, with a length if it says none, and an early stop where it ``validates``."""
    if training.keys() & {"updates", "epochs"}:
        return training
    return {"epochs": EPOCHS, **({"early_stop": PATIENCE} if validates else {}), **training}
