"""The benchmark of defaults against tuned variants, on tiny networks and with times that are made up."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from torch import nn
from typer import Typer
from typer.testing import CliRunner

from benchmarks import tuning
from benchmarks.tuning import NETWORKS, Network, Report, Row, benchmark, chain, measured, scaled
from gncompile.errors import CompileError
from gncompile.tuning.cpu import CpuProblem
from gncompile.tuning.problem import Candidate, Key
from gncompile.tuning.store import bucket

TINY = {"tiny": Network((6, 9, 3), chain(nn.Tanh), "mse")}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inverses take 4 ms, without a border 1 ms at odd sizes; affine maps 3 ms, with b after it 2 ms."""

    def measure(self: CpuProblem, candidate: Candidate) -> float:
        if self.key.kernel == "damped_inverse":
            return 0.001 if candidate.options and self.key.shape[0] % 2 else 0.004
        if self.key.kernel == "affine":
            return 0.002 if candidate.options else 0.003
        return 0.001

    monkeypatch.setattr(CpuProblem, "measure", measure)


def rows(report: Report) -> dict[str, Row]:
    return {f"{r.key.kernel} {'x'.join(map(str, r.key.shape))}": r for r in report.rows}


def test_default_tuned_and_what_a_neighbour_found(made_up: None) -> None:
    found = benchmark(TINY, (8,), 60.0)
    by_name = rows(found)
    assert not found.wrong
    assert not found.unreached
    # The neighbours of the network 6-9-3 on 8 samples: 7-10-3 on 9.
    affine = by_name["affine 8x6x9"]
    assert affine.options["tuned"] == affine.options["fallback"] == {"bias": "after"}
    assert affine.factor("default") == pytest.approx(1.5)
    assert affine.factor("fallback") == 1.0
    # Inverses of 7, 9, 10 and 3 here; there of 11, and of 8, 10 and 3, which are no help.
    options = {name.split()[1]: row.options for name, row in by_name.items() if "inverse" in name}
    assert options["9"] == {"default": {}, "tuned": {"border": 1}, "fallback": {"border": 1}}
    assert options["10"] == {"default": {}, "tuned": {}, "fallback": {"border": 1}}
    assert by_name["damped_inverse 9"].factor("default") == pytest.approx(4.0)
    assert by_name["damped_inverse 10"].factor("default") == 1.0


def report() -> Report:
    def row(name: str, uses: int, default: float, tuned: float, fallback: float) -> Row:
        key = Key(name, "abc", (3,), "float32", "highest")
        options = {"default": {}, "tuned": {"v": 1}, "fallback": {}}
        return Row(key, uses, options, {"default": default, "tuned": tuned, "fallback": fallback})

    return Report([row("a", 3, 2.0, 1.0, 1.0), row("b", 1, 8.0, 1.0, 2.0)])


def test_means_totals_and_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a row a line
    found = report()
    assert found.mean("default") == pytest.approx(4.0)
    assert found.mean("fallback") == pytest.approx(math.sqrt(2))
    assert found.worst("default").key.kernel == "b"
    assert found.total("default") == pytest.approx((3 * 2 + 8) / (3 + 1))
    assert "geometric mean 4.000" in found.summary()
    assert "worst 8.00 (b 3 float32)" in found.summary()
    lines = found.table().splitlines()
    assert lines[2].split() == ["b", "3", "float32", "v=1", "1000000", "default", "8.00", "2.00"]
    assert json.loads(json.dumps(found.record()))["summary"]["default"]["worst"] == 8.0


def test_equal_choices_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def measure(self: CpuProblem, candidate: Candidate) -> float:
        calls.append(candidate.options)
        return 1.0 / len(calls)

    monkeypatch.setattr(CpuProblem, "measure", measure)
    (problem,) = (
        p
        for b in TINY["tiny"].benches((8,), 1.0, "torch")
        for p in b.problems(b.keys)
        if p.key.kernel == "affine" and p.key.shape == (8, 6, 9)
    )
    same = measured(problem, {"default": {}, "tuned": {}, "fallback": {}}, 0.0)
    assert calls == [{}]
    assert same == {"default": 1.0, "tuned": 1.0, "fallback": 1.0}
    after = {"bias": "after"}
    measured(problem, {"default": {}, "tuned": after, "fallback": after}, 0.0)
    # Three rounds at least, every other one backwards.
    assert calls[1:] == [{}, after, after, {}, {}, after]


def test_neighbours_are_in_the_same_bucket() -> None:
    sizes = {width for network in NETWORKS.values() for width in network.widths}
    sizes |= {*tuning.BATCHES, 250, 256}
    near = {s for s in sizes if bucket((s,)) == bucket((scaled(s, tuning.NEIGHBOUR),))}
    assert scaled(1, tuning.NEIGHBOUR) == 1
    assert len(near) >= 0.9 * len(sizes)


def test_wrong_defaults_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: CpuProblem, candidate: Candidate) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(CpuProblem, "measure", measure)
    monkeypatch.setattr(CpuProblem, "check", lambda self, candidate: "relative error 0.5")
    found = benchmark(TINY, (8,), 60.0)
    assert not found.rows
    assert all(line.endswith("relative error 0.5") for line in found.wrong)


def test_the_command_prints_and_writes(
    made_up: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tuning, "NETWORKS", TINY)
    command = Typer()
    command.command()(tuning.main)
    file = tmp_path / "record.json"
    given = ["--networks", "tiny", "--batches", "8", "--budget", "60s", "--json", str(file)]
    result = CliRunner().invoke(command, given)
    assert result.exit_code == 0, result.output
    assert "default   geometric mean" in result.output
    record = json.loads(file.read_text())
    assert record["environment"]["torch"]
    assert record["summary"]["default"]["worst"] == pytest.approx(4.0)


def test_an_unknown_network_is_named() -> None:
    with pytest.raises(CompileError, match="no network 'tinny'"):
        tuning.chosen("tinny")
