"""The benchmark's stage of large layers in the interpreter: every row computes, and its checks hold."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import checks, layers
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.rows import measured


def test_every_row_is_timed_and_counts_its_work() -> None:
    clock = Clock(torch.device("cpu"), rounds=1, least=0.0)
    rows = measured(layers.entries(clock, 24, 40), clock, lambda text: None)
    assert [row.error for row in rows] == [""] * len(rows)
    assert all(row.flops and row.bytes for row in rows)
    flops = {row.name: row.flops for row in rows}
    assert flops["syrk d=24 N=40, bfloat16"] == 24 * 25 * 40
    assert flops["torch.mm(a.T, a) d=24 N=40, bfloat16"] == 2 * 24 * 24 * 40


def test_the_kernels_alone_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ODD", (33, 17))
    found = list(checks.kernel_checks(torch.device("cpu"), layers.PRECISIONS))
    assert len(found) == 2 * len(layers.PRECISIONS)
    assert [check.name for check in found if not check.error <= check.allowed] == []
