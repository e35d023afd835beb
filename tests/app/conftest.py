"""What the tests of whole commands share."""

from __future__ import annotations

import pytest

from gncompile.app import training_run
from gncompile.training.trainer import Trainer


@pytest.fixture
def pictures() -> None:
    """For a test that looks at the pictures and pages of its runs."""


@pytest.fixture
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs write no pictures and pages, which take most of a short run's time."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(training_run, "draw", lambda *given: None)
        monkeypatch.setattr(Trainer, "report", lambda *given: None)
