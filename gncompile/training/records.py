"""What is known about each step, and the history of a fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
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

    def resolved(self) -> StepStats:
        """The statistics themselves, as those of a step that runs ahead of the host have to be waited for."""
        return self


@dataclass(frozen=True)
class Record(StepStats):
    """A step of a fit: what the step did, its samples and speed, and the validation loss where it was due."""

    samples: int = 0
    samples_per_second: float = 0.0
    validation_loss: float | None = None


@dataclass
class History:
    """The records of one fit in order; ``history.loss`` is the list of all records' ``loss``."""

    records: list[Record] = field(default_factory=list)
    skipped: int = 0
    """Bad batches left out (``skip_bad_batches=True``)."""
    stopped_early: bool = False
    ended: str = ""
    """Why the fit ended: all updates made, no better validation loss, or no more data."""

    @property
    def best(self) -> Record | None:
        """The record with the lowest validation loss; None without validation."""
        validated = [record for record in self.records if record.validation_loss is not None]
        return min(validated, key=lambda record: float(record.validation_loss or 0.0), default=None)

    def __repr__(self) -> str:
        parts = [count(len(self), "update")]
        if self.records:
            parts.append(f"loss {self[0].loss:.5g} → {self[-1].loss:.5g}")
        if self.best is not None:
            best = self.best
            parts.append(f"best validation {best.validation_loss:.5g} at update {best.update}")
        return f"History({', '.join([*parts, *filter(None, [self.ended])])})"

    def to_list(self) -> list[dict[str, Any]]:
        """The records as plain dictionaries, for JSON or a data frame."""
        return [asdict(record) for record in self.records]

    def __getattr__(self, name: str) -> list[Any]:
        known = [f.name for f in fields(Record)]
        if name not in known:
            hint = nearest(name, known) or f"Records have {', '.join(known)}."
            raise AttributeError(f"a History has no {name!r}. {hint}")
        return [getattr(record, name) for record in self.records]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]
