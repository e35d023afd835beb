"""A trainer's own numbers between steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..program.timetable import Due


@dataclass
class Counters:
    """What is counted; a checkpoint holds all of it."""

    updates: int = 0
    rejected: int = 0
    """Updates undone or refused, where the host decides."""
    held: int = 0
    """Steps that nothing was learned from."""
    since_refresh: int = 0
    unconfirmed: bool = False
    """Whether the last update has not been seen to give a finite loss."""

    def refreshed(self, now: Due) -> None:
        """Count a step since the inverses were made anew, or begin again."""
        self.since_refresh = 0 if now.fresh else self.since_refresh + 1

    def state_dict(self) -> dict[str, int | bool]:
        """The numbers by their stored names."""
        return {stored(name): value for name, value in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``; a number that an older version does not have begins anew."""
        for name in vars(self):
            setattr(self, name, state.get(stored(name), 0))


def stored(name: str) -> str:
    """The name of a number in a state."""
    return name if name == "updates" else f"_{name}"
