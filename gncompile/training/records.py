"""What is known about each step, and the history of a fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..base.tables import count
from ..errors import nearest


@dataclass(frozen=True)
class StepStats:
    """What one step did. Losses are of this batch before the step; None where not computed."""

    update: int
    """Number of this step; one whose update was refused is counted as well."""
    loss: float
    """Data loss Ē without the L2 term."""
    objective: float
    """``loss + ½ Σ η ‖θ‖²``."""
    damping: float | None = None
    step_size: float | None = None
    momentum: float | None = None
    predicted: float | None = None
    """Change of the objective that the quadratic model predicts."""
    rho: float | None = None
    """Actual over predicted change, on steps that check it."""
    rejected: int = 0
    """Updates undone or refused so far."""
    noise: float | None = None
    """The noise's share of the squared gradient (see ``derivation/noise.py``), on steps that measure it."""
    tried: int = 1
    """Dampings λ tried; ``damping_tries`` bounds them."""

    def resolved(self) -> StepStats:
        """The statistics themselves, as those of a step that runs ahead of the host have to be waited for."""
        return self


@dataclass(frozen=True)
class Record(StepStats):
    """A step of a fit: what the step did, its samples and speed, and the validation where it was due."""

    epoch: int = 0
    """The pass over the training data that it belongs to, from 0."""
    samples: int = 0
    samples_per_second: float = 0.0
    validation_loss: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """The fit's metrics of the validation data by name; none where no validation was due."""

    def to_dict(self) -> dict[str, Any]:
        """All numbers by name, those of the metrics among them."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "metrics"}
        return {**numbers, **self.metrics}

    def value(self, name: str) -> float | None:
        """The number of this name, a metric's or another; None where there is none."""
        found: float | None = self.to_dict().get(name)
        return found


@dataclass
class History:
    """The records of one fit in order; ``history.loss`` is the list of all records' ``loss``.

    A metric's name gives the list of its values, None where no validation was due.
    """

    records: list[Record] = field(default_factory=list)
    skipped: int = 0
    """Bad batches left out (``skip_bad_batches=True``)."""
    joined: int = 0
    """Updates on several batches put together, as ``gather_samples`` and ``gather_noise`` ask for."""
    stopped_early: bool = False
    """Whether early stopping or a callback ended the fit."""
    ended: str = ""
    """Why the fit ended: all updates made, no better validation, a callback, no more data, an error."""
    monitor: str = "validation_loss"
    """What tells the best record: the validation loss, or a metric."""
    higher_is_better: bool = False

    @property
    def best(self) -> Record | None:
        """The record with the best value of ``monitor``, the first of them; None without validation."""
        sign = -1.0 if self.higher_is_better else 1.0
        known = [(sign * v, r) for r in self if (v := r.value(self.monitor)) is not None]
        known = [(value, record) for value, record in known if math.isfinite(value)] or known
        return min(known, key=lambda each: each[0], default=(0.0, None))[1]

    @property
    def joining(self) -> str:
        """That most updates were on several batches, in words; nothing where they were not."""
        if 2 * self.joined <= len(self):
            return ""
        low, high = min(sizes := [record.samples for record in self]), max(sizes)
        samples = f"{low}" if low == high else f"{low} to {high}"
        return f"batches joined for most updates, {samples} samples each"

    def __repr__(self) -> str:
        parts = [count(len(self), "update"), *filter(None, [self.joining])]
        if self.records:
            parts.append(f"loss {self[0].loss:.5g} → {self[-1].loss:.5g}")
        if self.best is not None:
            best = self.best
            parts.append(f"best validation {best.validation_loss:.5g} at update {best.update}")
        return f"History({', '.join([*parts, *filter(None, [self.ended])])})"

    def to_list(self) -> list[dict[str, Any]]:
        """The records as plain dictionaries of numbers, metrics among them, for JSON or a data frame."""
        return [record.to_dict() for record in self]

    def __getattr__(self, name: str) -> list[Any]:
        if name.startswith("_"):  # copies and pickles ask before there are records
            raise AttributeError(name)
        measured = {key for record in self.records for key in record.metrics}
        known = [f.name for f in fields(Record)]
        if name in measured:
            return [record.metrics.get(name) for record in self.records]
        if name not in known:
            names = [*known, *sorted(measured)]
            hint = nearest(name, names) or f"Records have {', '.join(names)}."
            raise AttributeError(f"a History has no {name!r}. {hint}")
        return [getattr(record, name) for record in self.records]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]
