"""The benchmark's own logic, on networks small enough to run in a moment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from benchmarks import compare, cpu_step, timing
from benchmarks.compare import Check, checks, relative_error
from benchmarks.compiled import FACTORS, Compiled
from benchmarks.contestants import AUTOGRAD, BACKPACK_KFRA, OUR_KFRA, OUR_STEP, autograd
from benchmarks.cpu_step import Report, benchmark
from benchmarks.flops import gradient_flops, kfac_flops, kfra_flops
from benchmarks.problems import LossName, Problem
from benchmarks.statements import STEP, by_phase, profile
from benchmarks.timing import Contestant, Timing, measure

WIDTHS = (9, 7, 3, 7, 9)
LOSSES: list[LossName] = ["mse", "bce"]


def tiny(loss: LossName = "mse", widths: tuple[int, ...] = WIDTHS, batch: int = 6) -> Problem:
    return Problem.make("tiny", widths, batch, loss)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets the number of threads; the rest of the suite keeps its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- what is timed ------------------------------------------------------------------------------------


def test_the_code_and_the_output_are_linear() -> None:
    kinds = [type(module).__name__ for module in tiny().model]
    assert kinds == ["Linear", "Tanh", "Linear", "Linear", "Tanh", "Linear"]


def test_a_problem_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = tiny()
    torch.manual_seed(2)
    again = tiny()
    assert torch.equal(first.x, again.x)
    assert torch.equal(first.model[0].weight, again.model[0].weight)


def test_contestants_take_turns_and_a_cycle_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setitem(timing.CLOCKS, "wall", lambda: float(len(calls)))
    entrants = [
        Contestant("a", lambda: calls.append("a"), flops=0, cycle=2, warm_up=1),
        Contestant("b", lambda: calls.append("b"), flops=0, warm_up=0),
    ]
    timings = measure(entrants, rounds=2)
    assert "".join(calls) == "a" + "aab" * 2
    assert timings["a"].seconds == [1.0, 1.0]  # two calls, a second each by this clock


def test_a_timing_gives_median_and_range() -> None:
    seconds = Timing([5.0, 1.0, 2.0])
    assert (seconds.median, seconds.fastest, seconds.slowest) == (2.0, 1.0, 5.0)


# --- correctness before speed -------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_checks_hold(loss: LossName) -> None:
    found = list(checks(tiny(loss)))
    assert len(found) >= 4
    assert all(check.holds for check in found), "\n".join(map(str, found))


def test_a_nan_is_not_within_bounds() -> None:
    assert not Check("", float("nan"), 1.0).holds
    nan = torch.tensor([float("nan")])
    one = torch.ones(1)
    error = compare.largest({"a": nan, "b": one}, {"a": one, "b": one})
    assert not Check("", error, 1.0).holds


def test_relative_error() -> None:
    assert relative_error(torch.tensor([3.0, 4.4]), torch.tensor([3.0, 4.0])) == pytest.approx(0.08)
    assert relative_error(torch.tensor([0.5]), torch.zeros(1)) == 0.5


def test_a_wrong_gradient_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Compiled.gradients
    monkeypatch.setattr(
        Compiled, "gradients", lambda self: {k: v * 1.001 for k, v in right(self).items()}
    )
    report = benchmark(tiny(), rounds=1)
    assert not report.correct
    assert not report.rows
    result = run(monkeypatch, "--rounds", "1")
    assert result.exit_code == 1
    assert "WRONG" in result.output
    assert "median" not in result.output


# --- the command --------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str):  # type: ignore[no-untyped-def]
    """The command, with the MNIST network shrunk."""
    monkeypatch.setitem(cpu_step.WIDTHS, "mnist", WIDTHS)
    app = typer.Typer()
    app.command()(cpu_step.main)
    return CliRunner().invoke(app, ["--batch", "6", "--threads", "1", *arguments])


def test_the_command_prints_a_table_and_writes_a_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "record.json"
    result = run(monkeypatch, "--rounds", "2", "--loss", "bce", "--json", str(file))
    assert result.exit_code == 0, result.output
    record = json.loads(file.read_text())
    assert record["environment"]["threads"] == "1"
    assert record["problem"]["widths"] == list(WIDTHS)
    rows = record["rows"]
    assert {AUTOGRAD, OUR_KFRA, OUR_STEP} <= rows.keys()
    assert all(len(row["seconds"]) == 2 and row["median"] > 0 for row in rows.values())
    assert rows[AUTOGRAD]["over_autograd"] == 1


def test_aims_are_judged_only_beside_backpack() -> None:
    def row(name: str, seconds: float) -> tuple[Contestant, Timing]:
        return Contestant(name, lambda: None, flops=1e9), Timing([seconds])

    ours = {OUR_KFRA: row(OUR_KFRA, 0.7), OUR_STEP: row(OUR_STEP, 1.2)}
    assert Report(tiny(), [], rows=ours).aims() == []
    met, missed = Report(tiny(), [], rows={**ours, BACKPACK_KFRA: row(BACKPACK_KFRA, 1.0)}).aims()
    assert met.startswith("met")
    assert "0.70 ×" in met
    assert missed.startswith("MISSED")
    assert "1.20 ×" in missed


# --- arithmetic ---------------------------------------------------------------------------------------


def test_flops_of_a_gradient_are_what_torch_counts() -> None:
    problem = tiny(widths=(50, 40, 10, 40, 50), batch=32)
    call = autograd(problem, problem.fresh())
    with FlopCounterMode(display=False) as counter:
        call()
    assert gradient_flops(problem.widths, problem.batch) == counter.get_total_flops()


@pytest.mark.parametrize("method", ["kfra", "kfac"])
def test_flops_of_our_program_are_those_of_the_formulas(method: str) -> None:
    """Beyond the products, elementwise work is a few flops per activation: 5 % at these widths."""
    widths, batch = (200, 160, 40, 160, 200), 128
    expected = {"kfra": kfra_flops, "kfac": kfac_flops}[method](widths, batch)
    if (
        method == "kfra"
    ):  # the output Hessian of BCE is diagonal, so one product of the formula is free
        expected -= 2 * 200 * 200 * 160
    compiled = Compiled.of(tiny("bce", widths, batch), method)
    assert compiled.flops("gradient") == pytest.approx(gradient_flops(widths, batch), rel=0.05)
    assert compiled.flops(*FACTORS) == pytest.approx(expected, rel=0.05)


# --- statements ---------------------------------------------------------------------------------------


def test_every_statement_is_timed_and_computes_the_same() -> None:
    plain, timed = Compiled.of(tiny()), Compiled.of(tiny())
    plain.run(*FACTORS)
    statements = profile(timed, FACTORS, runs=2)
    assert all(len(s.seconds) == 2 for s in statements)
    source = timed.executable.source_file
    assert source is not None
    lines = source.read_text().splitlines()
    for statement in statements:
        first_words = statement.text.split("(")[0]
        assert first_words in lines[statement.line - 1]
    assert by_phase(statements).keys() == set(FACTORS)
    assert all(seconds > 0 for seconds in by_phase(statements).values())
    for layer, (g, q) in plain.factors().items():
        timed_g, timed_q = timed.factors()[layer]
        assert relative_error(timed_g, g) == 0
        assert relative_error(timed_q, q) == 0


def test_a_whole_step_can_be_profiled() -> None:
    compiled = Compiled.of(tiny())  # of so few samples all make the factors
    assert by_phase(profile(compiled, STEP, runs=1)).keys() == set(STEP) - {"share_inputs"}
