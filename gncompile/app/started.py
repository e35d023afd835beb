"""How a run was started, and how it ended: what ``run.json`` says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import CheckpointError
from ..frontends.model_schema import Seed
from .device import CPU, WORDS
from .run_folder import RunFolder

Count = Annotated[int, Field(gt=0)]


class Started(BaseModel):
    """How a run was started, as its folder keeps it.

    Paths of the model file are relative to ``base`` and may lead into ``data_root``; ``data`` is the digest
    of what was read there. It has to be the same when the run goes on, so a folder of somebody else cannot
    have other files trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    base: str
    updates: Count | None
    epochs: Count | None
    seed: Seed
    checkpoint_every: Count
    data: str
    data_root: str | None
    asked: Mapping[str, int | str | None] | None = None
    """What it was asked for beside the model file; None in folders of older versions."""
    device: Annotated[str, Field(pattern=WORDS)] = CPU
    """Where it was trained last, as ``--device`` takes it."""
    ended: Annotated[str, Field(max_length=1000)] | None = None
    """Why the training has ended, once it has."""

    @classmethod
    def of(cls, folder: RunFolder) -> Started:
        """What ``run.json`` says; :class:`~gncompile.errors.CheckpointError` unless it makes sense."""
        try:
            started = cls.model_validate(folder.settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            found = f"run.json is damaged at {'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise CheckpointError(
                found, where=str(folder.path), instead="start the run again"
            ) from None
        if (started.updates is None) == (started.epochs is None):
            raise CheckpointError("run.json does not say how long to train", where=str(folder.path))
        return started

    @property
    def elsewhere(self) -> str:
        """``", on cuda"``, for a report; nothing of the processor."""
        return "" if self.device == CPU else f", on {self.device}"

    def total(self, batches: int) -> int:
        """Updates the whole run makes, with so many batches in an epoch."""
        return self.updates or (self.epochs or 0) * batches

    def ended_with(self, reason: str, folder: RunFolder) -> Started:
        """The same run, known to have ended; ``run.json`` says so from now on."""
        return self._changed(folder, ended=reason)

    def prolonged(self, updates: int, folder: RunFolder) -> Started:
        """The same run, which ends after ``updates`` updates in all; ``run.json`` says so from now on."""
        return self._changed(folder, updates=updates, epochs=None, ended=None)

    def moved(self, device: str, folder: RunFolder) -> Started:
        """The same run, trained on this device from now on; ``run.json`` says so."""
        return self if device == self.device else self._changed(folder, device=device)

    def _changed(self, folder: RunFolder, **changes: object) -> Started:
        changed = self.model_copy(update=changes)
        folder.settings = changed.model_dump()
        return changed
