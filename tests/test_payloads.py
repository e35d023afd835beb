"""The watch over payloads notices each kind of running."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from payloads import nothing_executed, payloads


def test_quiet_where_nothing_runs(tmp_path: Path) -> None:
    with nothing_executed(tmp_path / "marker-quiet"):
        assert len(set(payloads(tmp_path / "marker-quiet"))) == 12
        (tmp_path / "other").write_text("")


@pytest.mark.parametrize("index", [0, 1, 2])
def test_notices_evaluated_payloads(tmp_path: Path, index: int) -> None:
    marker = tmp_path / "marker-evaluated"
    with pytest.raises(AssertionError, match="ran as code"), nothing_executed(marker):
        eval(payloads(marker)[index])


def test_notices_a_shell(tmp_path: Path) -> None:
    marker = tmp_path / "marker-shell"
    with pytest.raises(AssertionError, match="ran as code"), nothing_executed(marker):
        os.system(f"touch {marker}")
