"""The contest's orders of rows: the same rows, by inputs, by classes, and with classes in turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.convergence import orders
from benchmarks.convergence.problems import PROBLEMS
from gncompile.app.comparison.contest import Contest
from gncompile.app.comparison.running import Budget


def test_rows_are_rearranged_and_none_is_lost() -> None:
    x, y = torch.randn(40, 3), torch.tensor([2, 0, 1, 1] * 10)
    found = {name: order(x, y) for name, order in orders.ORDERS.items()}
    for rows in found.values():
        assert torch.equal(rows.sort().values, torch.arange(40))
    assert y[found["class by class"]].tolist() == [0] * 10 + [1] * 20 + [2] * 10
    assert y[found["alternating"]].tolist() == [0, 1, 2] * 10 + [1] * 10
    sums = x[found["sorted"]].sum(dim=1)
    assert torch.equal(sums, sums.sort().values)


def test_numbers_are_grouped_by_deciles() -> None:
    y = torch.linspace(1, 0, 50)[:, None]
    assert orders.groups(y).tolist() == [9 - k // 5 for k in range(50)]


def test_every_order_is_trained_and_told(tmp_path: Path) -> None:
    task = PROBLEMS["stiff"].task(samples=24)
    contest = Contest(
        tmp_path, Budget(4, "u"), seeds=(0, 1), points=2, report=lambda text: None, machine={}
    )
    found = list(orders.measure(task, contest))
    assert [each.order for each in found] == list(orders.ORDERS)
    orders.write(found, tmp_path, "4u")
    assert json.loads((tmp_path / "orders.json").read_text())[1]["order"] == "sorted"
    said = (tmp_path / "report.md").read_text()
    assert all(name in said for name in orders.ORDERS)
    mean, *_ = said.split("shuffled")[1].split()
    assert float(mean) == pytest.approx(
        float(torch.tensor(found[0].losses).log().mean().exp()), rel=0.01
    )
