"""The GPU benchmark's own code, on the CPU at tiny sizes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import gncompile
from benchmarks.compare import Check
from benchmarks.gpu import kernels, places, tuning
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.handwritten import SETTINGS, HandwrittenKFRA
from benchmarks.gpu.network import Network
from benchmarks.gpu.ours import Engine, step_cost
from benchmarks.gpu.rows import Entry, Left, Prepared, Row, measured, ratio, table
from benchmarks.problems import Problem
from gncompile.training.order import as_read

CLOCK = Clock(torch.device("cpu"), rounds=2, least=0.0)


def tiny(batch: int = 12) -> Problem:
    return Problem.make("tiny", (9, 8, 3, 8, 9), batch, "mse")


@pytest.mark.parametrize("refresh", [1, 3])
def test_the_step_by_hand_is_ours(refresh: int) -> None:
    """To float64 rounding over 12 steps, with factors on part of the batch, momentum and two checks of λ."""
    problem = replace(tiny(600), x=tiny(600).x.double())
    steps = HandwrittenKFRA(problem.fresh(torch.float64), refresh)
    model = problem.fresh(torch.float64)
    ours = gncompile.compile(
        model, problem.declared_loss, problem.x, refresh_every=refresh, **SETTINGS
    )
    for _ in range(12):
        loss = steps.step(*as_read(ours, *problem.pair()))
        assert ours.step(*problem.pair()).loss == pytest.approx(float(loss.detach()), rel=1e-10)
    assert ours.damping == pytest.approx(float(steps.damping), rel=1e-12)


def test_the_command_checks_times_and_writes(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    given = ["--dry-run", "--stages", "curvature", "--rounds", "1", "--output", str(file)]
    assert main(given) == 0
    record = json.loads(file.read_text())
    assert all(check["error"] <= check["allowed"] for check in record["checks"].values())
    assert {"matrix", "copy"} == record["rates"].keys()
    rows = {row["name"]: row for row in record["stages"]["mnist, batch 12"]}
    assert rows["KFRA factors + gradient, ours"]["median"] > 0
    assert rows["KFRA factors + gradient, ours"]["flops"] > 0


def test_networks_with_places_are_checked_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    network = nn.Sequential(*layers), torch.rand(4, 1, 4, 4), torch.arange(4) % 3
    monkeypatch.setitem(places.EVERY, "lenet", lambda: network)
    file = tmp_path / "record.json"
    given = ["--dry-run", "--stages", "places", "--networks", "lenet", "--rounds", "1"]
    assert main([*given, "--output", str(file)]) == 0
    record = json.loads(file.read_text())
    assert len(record["checks"]) == 3
    assert all(check["error"] <= check["allowed"] for check in record["checks"].values())
    rows = {row["name"]: row for row in record["stages"]["lenet, batch 4"]}
    assert {name for name, row in rows.items() if row["left_out"]} == {
        places.IMPLICIT_GRADIENT,
        places.IMPLICIT_FACTORS,
    }
    assert all(row["median"] > 0 for row in rows.values() if not row["left_out"])


def test_wrong_results_are_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.gpu.checks.STEPS", 1)
    right = HandwrittenKFRA.step
    monkeypatch.setattr(HandwrittenKFRA, "step", lambda self, x, y: right(self, 2 * x, y))
    assert main(["--dry-run", "--stages", "curvature"]) == 2
    output = capsys.readouterr().out
    assert "WRONG" in output
    assert "TFLOP/s" not in output


def test_a_check_that_raises_does_not_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*_: object) -> Iterator[Check]:
        yield Check("first", 0.0, 1.0)
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("benchmarks.gpu.__main__.checks", broken)
    file = tmp_path / "record.json"
    assert main(["--dry-run", "--stages", "curvature", "--output", str(file)]) == 2
    assert list(json.loads(file.read_text())["checks"]) == [
        "first",
        "the check after first: RuntimeError: no such kernel",
    ]


def test_without_a_device_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "--dry-run" in capsys.readouterr().err


# --- rows ---------------------------------------------------------------------------------------------


def entries() -> Iterator[Entry]:
    def fails() -> Prepared:
        raise ValueError("no such kernel")

    def leaves_out() -> Prepared:
        raise Left("nobody asked")

    yield Entry("broken", fails)
    yield Entry("absent", leaves_out)
    yield Entry("sound", lambda: Prepared(lambda: None, flops=1e6, repeats=10))


def test_a_row_that_fails_keeps_its_error_and_the_rest_goes_on() -> None:
    rows = measured(entries(), CLOCK, lambda text: None)
    assert [row.error for row in rows] == ["ValueError: no such kernel", "", ""]
    assert rows[1].left_out == "nobody asked"
    assert len(rows[2].seconds) == 2
    text = table("rows", rows, {"matrix": 1e12}, {"/sound": "sound"})
    assert "broken: FAILED, ValueError: no such kernel" in text
    assert "absent: left out, nobody asked" in text


def test_rates_and_ratios() -> None:
    rows = [Row("a", [2.0, 1.0, 3.0], flops=4e12), Row("b", [1.0])]
    assert rows[0].rate(rows[0].flops) == 2e12
    assert ratio(rows, rows[0], "b") == 2.0
    assert ratio(rows, rows[0], "c") is None
    line = table("t", rows, {"matrix": 8e12}, {}).splitlines()[2]
    assert line.split()[4:7] == ["4000.000", "2.00", "25.0"]


def test_a_measurement_is_of_whole_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr("time.perf_counter", lambda: float(len(calls)))
    clock = Clock(torch.device("cpu"), rounds=2, least=7.0)
    assert clock.measure(lambda: calls.append(0), cycle=3, warm_up=1) == [1.0, 1.0]
    assert (
        len(calls) == 1 + 3 + 2 * 6
    )  # warm-up, one cycle, then two cycles a round: about 7 seconds


# --- what is known of the emitted step ----------------------------------------------------------------


def test_every_statement_of_a_step_can_be_timed_and_phases_add_up() -> None:
    problem = tiny()
    ours = Engine("torch", "high").trainer(problem, layer_steps=0)
    ours.step(problem.x, problem.x)
    executable = ours._executable
    dims = {"N": 12, **ours.settings.rows(12)}
    rows = measured(kernels.entries(executable, CLOCK, dims), CLOCK, lambda text: None)
    assert not [row.error for row in rows if row.error]
    phases = kernels.by_phase(rows)
    assert {"gradient", "curvature", "invert", "update"} <= {row.name for row in phases}
    total = sum(row.median or 0.0 for row in rows)
    assert sum(row.seconds[0] for row in phases) == pytest.approx(total)


def test_a_step_that_refreshes_less_costs_less() -> None:
    ours = Engine("torch", "high").trainer(tiny(), layer_steps=0)
    often = replace(ours.settings, refresh_every=1)
    costs = [step_cost(ours.program, s, 12) for s in (ours.settings, often)]
    assert costs[0].flops < costs[1].flops
    assert costs[0].bytes < costs[1].bytes


def test_peers_that_are_missing_are_left_out() -> None:
    network = Network(tiny(), CLOCK, Engine("torch", "high"))
    compiled = next(e for e in network.gradients() if "torch.compile" in e.name)
    with pytest.raises(Left, match="CUDA devices only"):
        compiled.prepare()


# --- the stage of settings ----------------------------------------------------------------------------


def test_without_triton_the_settings_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    given = ["--dry-run", "--stages", "tuning", "--rounds", "1", "--output", str(file)]
    assert main(given) == 0
    (row, wall) = json.loads(file.read_text())["stages"]["tuning, batch 12"]
    assert "TRITON_INTERPRET=1" in row["left_out"]
    assert wall["name"] == "gncompile tune, quick: wall time"


def test_geometric_means_are_of_launches_with_all_contenders() -> None:
    times = {"a": (4.0, 1.0, 2.0), "b": (1.0, 1.0, 8.0)}
    rows = [
        Row(f"{launch}: {contender}", [seconds])
        for launch, three in times.items()
        for contender, seconds in zip(tuning.CONTENDERS, three, strict=True)
    ]
    rows += [
        Row("c: default", [9.0]),
        Row("c: tuned", error="ValueError"),
        Row(tuning.WALL, [60.0]),
    ]
    found = {row.name: row.median for row in tuning.means(rows)}
    assert found == {
        "default, geometric mean": pytest.approx(2.0),
        "tuned, geometric mean": pytest.approx(1.0),
        "triton.autotune, geometric mean": pytest.approx(4.0),
    }
    assert tuning.means(rows[:2]) == []


def test_what_was_measured_already_is_not_measured_again() -> None:
    def called() -> None:
        raise AssertionError("called")

    (row,) = measured(
        [Entry("known", lambda: Prepared(called, seconds=[3.0]))], CLOCK, lambda text: None
    )
    assert row.seconds == [3.0]
    assert not row.error
