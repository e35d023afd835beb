"""``gncompile tune --dry-run``: candidates compiled for a GPU that is not here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from small_model import curves_model

from gncompile.app.cli import main


def test_a_dry_run_says_what_the_best_candidates_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weight gradients of a model file: two kernels and the default's compiled, nothing is stored."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("GNCOMPILE_TUNING", str(tmp_path / "tuning"))
    monkeypatch.setenv("COLUMNS", "200")  # a row a line
    path = curves_model(tmp_path, 64, 64, 64, '[training.options]\nprecision = "high"\n')
    arguments = ["--dry-run", "--target", "sm_90", "--kernel", "grad_layer1", "--limit", "1"]
    with pytest.raises(SystemExit, match="0"):
        main(["tune", str(path), *arguments])
    out = capsys.readouterr().out
    assert "for sm_90: 1 distinct launch\n" in out
    found = re.search(r"grouped_cross_moment +64x65x64.* (\d+) +(\d+) +registers \d+", out)
    assert found is not None
    assert int(found[1]) > int(found[2]) > 10
    details = out[out.index("grouped_cross_moment 64x65x64x64x65x64 float32: grad_layer1") :]
    used = re.findall(r"\n(default|block_m=\d+).* (\d+) +(\d+) B +(\d+) B +\d+ (\w+)", details)
    assert used[0][0] == "default"
    assert len(used) == 3
    for _, registers, spilled, shared, products in used:
        assert 0 < int(registers) <= 255
        assert int(spilled) == 0
        assert 0 < int(shared) <= 232448
        assert products in ("mma", "wgmma")
    assert not (tmp_path / "tuning").exists()
