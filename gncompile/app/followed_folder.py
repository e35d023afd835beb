"""The run folder as those processes of a training have it that write nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .run_folder import RunFolder


class FollowedFolder(RunFolder):
    """Read here, and held and written by the first process of the same training."""

    def hold(self) -> None:
        """The first process does."""

    def discard(self) -> None:
        """The first process does."""

    def append(self, record: Mapping[str, Any]) -> None:
        """The first process does."""

    def rewind(self, updates: int) -> None:
        """The first process does."""

    def _write_record(self, record: Mapping[str, Any]) -> None:
        """The first process does."""


def kind_of_folder() -> type[RunFolder]:
    """Of this process: a :class:`RunFolder` for the first, and for one that is alone."""
    from ..runtime.processes import current

    processes = current()
    return RunFolder if processes is None or processes.leads else FollowedFolder
