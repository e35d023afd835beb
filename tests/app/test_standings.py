"""What is said of stored runs: files, tables, the overview, curves."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gncompile.app.comparison.pictures import ceiling, curves
from gncompile.app.comparison.standings import overview, records, reference, standings, text
from gncompile.app.comparison.store import Point, Run, file_of, read, read_all, tidy, write
from gncompile.errors import DataError


def stored(
    optimiser: str, seed: int, points: list[tuple[int, float, float]], rate: float | None = None
) -> Run:
    setting = {"lr": rate, "schedule": "cosine"} if rate else {}
    each = tuple(Point(updates, seconds, loss, loss + 1) for updates, seconds, loss in points)
    clock = {"clock": "wall"}
    return Run("task", optimiser, setting, seed, "8s", "done", "", 0.5, each, clock)


RUNS = [
    stored("kfra", 0, [(0, 0, 9), (10, 1, 2), (80, 8, 0.5)]),
    stored("kfra", 1, [(0, 0, 9), (10, 2, 2), (60, 8, 0.25)]),
    stored("kfra", 2, [(0, 0, 9), (10, 4, 2), (70, 8, 1)]),
    stored("adam", 0, [(0, 0, 9), (200, 4, 4), (400, 8, 2)], 1e-3),
    stored("adam", 1, [(0, 0, 9), (200, 4, 4), (400, 8, 2)], 1e-3),
    stored("adam", 2, [(0, 0, 9), (200, 4, 4), (400, 8, 3)], 1e-3),
    stored("adam", 0, [(0, 0, 9), (200, 4, 7), (400, 8, 6)], 1e-2),
    stored("sgd", 0, [(0, 0, 9), (200, 4, 8), (500, 8, 7)], 1e-1),
    Run("task", "soap", {}, 0, "8s", "not run", "pytorch_optimizer is not installed"),
]
AFTER = """

sooner: than adam, the best first-order optimiser, to reach
2, which took it 8 s
soap: not run: pytorch_optimizer is not installed"""
TABLE = f"""\
optimiser  setting          updates  loss  validation   s to reach  sooner
       range  runs  search s  setup s
---------  ---------------  -------  ----  ----------  -----------  ------
kfra       defaults              70   0.5         1.5            2   4.00×
    0.25 … 1     3         0      0.5
adam       lr=0.001 cosine      400     2           3            8   1.00×
       2 … 3     4         8      0.5
sgd        lr=0.1 cosine        500     7           8  not reached
           7     1         0      0.5{AFTER}"""
IN_ONE_LINE = f"""\
optimiser  setting          updates  loss  validation   s to reach  sooner     range  runs  search s  setup s
---------  ---------------  -------  ----  ----------  -----------  ------  --------  ----  --------  -------
kfra       defaults              70   0.5         1.5            2   4.00×  0.25 … 1     3         0      0.5
adam       lr=0.001 cosine      400     2           3            8   1.00×     2 … 3     4         8      0.5
sgd        lr=0.1 cosine        500     7           8  not reached                 7     1         0      0.5\
{AFTER}"""


def test_the_table_of_stored_runs(tmp_path: Path) -> None:
    for each in RUNS[:-1]:
        path = write(tmp_path, each)
        assert path == file_of(tmp_path, "task", each.optimiser, each.setting, each.seed, "8s")
        assert read(path) == each
    found = standings([*read_all(tmp_path), RUNS[-1]])
    in_order = sorted(found, key=lambda s: ["kfra", "adam", "sgd", "soap"].index(s.optimiser))
    assert text(in_order, 80) == TABLE
    assert text(in_order, 120) == IN_ONE_LINE


def test_losses_that_are_not_finite_are_kept(tmp_path: Path) -> None:
    diverged = replace(stored("sgd", 0, [(0, 0, 9), (3, 1, math.inf)], 0.3), status="diverged")
    assert read(write(tmp_path, diverged)) == diverged
    shown = text(standings([diverged, RUNS[0]]))
    assert "not finite  not finite  not reached" in shown
    assert "inf" not in shown.replace("not finite", "")
    assert reference(standings([diverged])) is None
    json.loads(json.dumps(records(standings([diverged])), allow_nan=False))


def test_the_overview_takes_the_median_task_and_names_losses() -> None:
    slow = [replace(run, task="other") for run in RUNS if run.optimiser != "kfra"]
    lost = replace(stored("kfra", 0, [(0, 0, 9), (90, 8, 5)]), task="other")
    lines = overview(standings([*RUNS, *slow, lost])).splitlines()
    row = next(re.split("  +", line) for line in lines if line.startswith("kfra"))
    assert row == [
        "kfra",
        "2",
        "2.00×",
        "not reached",
        "other",
    ]  # 4× on one task, never on the other


def test_points_are_one_tidy_table() -> None:
    rows = list(csv.DictReader(tidy(RUNS).splitlines()))
    assert len(rows) == sum(len(run.points) for run in RUNS)
    assert rows[3]["optimiser"] == "kfra"
    assert (rows[3]["seed"], rows[3]["updates"]) == ("1", "0")
    assert float(rows[2]["train"]) == 0.5


def test_curves_end_where_the_shortest_run_does() -> None:
    updates, losses = curves(RUNS[:3], "updates")
    assert updates.tolist() == [0, 10, 60]
    assert losses[1].tolist() == [9, 2, 0.25]
    assert losses[2, 2] == pytest.approx(2 - 50 / 60)
    assert math.isclose(losses[0, 2], 2 - 1.5 * 50 / 70)


def test_what_has_no_number_is_said_in_words() -> None:
    at_once = [replace(run, task="easy") for run in RUNS if run.optimiser == "adam"]
    began = replace(stored("kfra", 0, [(0, 0, 1), (9, 8, 1)]), task="easy")
    (row,) = [r for r in text(standings([*at_once, began])).splitlines() if r.startswith("kfra")]
    assert row.endswith(" 0  at once")
    pair = [stored("adam", 0, [(0, 0, 9), (9, 8, 1)]), stored("adam", 1, [(0, 0, 9), (9, 8, 3)])]
    found = standings([*pair, RUNS[0]])  # the median of two losses, which one seed does not reach
    assert "which took it too long s" not in text(found)
    assert "inf" not in text(found)
    assert overview(found) == ""


def test_what_rises_far_above_the_first_loss_is_cut_off() -> None:
    risen = stored("shampoo", 0, [(0, 0, 9), (3, 1, 14), (9, 8, 400)])
    assert ceiling(RUNS[:3]) is None
    assert ceiling([*RUNS[:3], risen]) == 1.5 * 9
    assert ceiling([*RUNS[:3], risen, RUNS[-1]]) == 1.5 * 9  # one without points


def test_a_damaged_run_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path, stored("adam", 0, [(0, 0.0, 3.0)]))
    path.write_text(path.read_text()[:40])
    with pytest.raises(DataError, match="not a stored run") as caught:
        read(path)
    assert str(path) in str(caught.value)
