"""Tuning of emitted Triton steps in the interpreter: values are computed and checked, times are made up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import curves_model
from torch import nn

import gncompile
from gncompile.app.cli import main
from gncompile.base import config
from gncompile.emit.torch_operations import Options
from gncompile.emit.triton_calls import Call, Expression
from gncompile.program.schedule import Kind
from gncompile.training.trainer import Trainer
from gncompile.triton_kernels.launches import Launch
from gncompile.tuning import gpu, gpu_work, step_check, tuner
from gncompile.tuning.gpu import GpuBench, Subject
from gncompile.tuning.gpu_problem import LIBRARY, GpuProblem, Timed
from gncompile.tuning.gpu_work import FIGURES
from gncompile.tuning.problem import DEFAULT, Candidate
from gncompile.tuning.search import search
from gncompile.tuning.step_check import StepComparison
from gncompile.tuning.store import Store, TuningWarning

SAMPLES = 20
SIZES = (17, 12, 9)
FAST, SLOW = 0.001, 0.004
BLOCK_M = 16
"""The height of tiles that is made to win; the default has 32."""
INTERPRETER = "interpreter"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> Iterator[None]:
    with config.using(tuning=tmp_path / "tuning"):
        yield


@pytest.fixture
def moments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight gradients are all that is tuned, so that a test takes seconds."""
    monkeypatch.setattr(gpu, "SOURCES", {Kind.CROSS_MOMENT: gpu.SOURCES[Kind.CROSS_MOMENT]})


@pytest.fixture
def favoured(moments_only: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements in which ``block_m=16`` wins, and a step that is as fast with it."""
    monkeypatch.setattr(gpu, "by_clock", stopwatch)
    as_fast = StepComparison(1.0, 1.0, 1.0, 0.0, 0.0)
    monkeypatch.setattr(tuner, "compare", lambda *arguments: as_fast)


def stopwatch(launches: Sequence[Any]) -> Timed:
    fast = launches[0].arguments.get("BLOCK_M") == BLOCK_M
    return lambda: FAST if fast else SLOW


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(1)
    inputs, hidden, outputs = SIZES
    layers = nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, outputs)
    return nn.Sequential(*layers).to(dtype)


def compiled(tune: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Trainer:
    example = torch.zeros(SAMPLES, SIZES[0], dtype=dtype)
    return gncompile.compile(network(dtype), "mse", example, backend="triton", tune=tune, **options)


def bench(dtype: torch.dtype = torch.float32, **options: Any) -> GpuBench:
    trainer = compiled("off", dtype, **options)
    dims = {"N": SAMPLES, **trainer.settings.rows(SAMPLES), "S": 1}
    return GpuBench(trainer.program, dims, dtype, "highest", torch.device("cpu"))


def problem(of: GpuBench, kernel: str) -> GpuProblem:
    """The smallest problem of a kind."""
    keys = {name: key for name, key in of.keys.items() if key.kernel == kernel}
    return min(of.problems(keys), key=lambda p: p.candidates[0].predicted)


# --- problems -----------------------------------------------------------------------------------------


def test_every_kind_of_launch_agrees_with_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default and the candidate that differs most from it, on scratch tensors with NaN around."""
    monkeypatch.setattr(gpu_work, "SMALL", 16)
    of = bench(torch.float64, guarded=True, average=0.9, l2=1e-3, layer_steps=0)
    kernels = {key.kernel for key in of.keys.values()}
    assert kernels >= {
        "gemm", "grouped_gemm", "grouped_second_moment", "grouped_cross_moment", "congruence",
        "grouped_precondition", "elementwise", "grouped_elementwise", "reduction",
        "grouped_reduction", "decay",
    }  # fmt: skip
    for kernel in sorted(kernels):
        one = problem(of, kernel)
        for candidate in (one.candidates[0], one.candidates[-1]):
            assert one.check(candidate) is None, f"{kernel} {candidate}"
        one.release()


def test_the_product_before_a_congruence_has_settings_of_its_own() -> None:
    deep = nn.Sequential(*(nn.Linear(n, n - 1) for n in (6, 5, 4)))
    options = {"backend": "triton", "method": "kfra"}
    example = torch.zeros(SAMPLES, 6)
    default = gncompile.compile(deep, "mse", example, tune="off", **options)
    dims = {"N": SAMPLES, "F": SAMPLES, "Q": SAMPLES, "L": SAMPLES, "S": 1}
    of = GpuBench(default.program, dims, torch.float32, "highest", torch.device("cpu"))
    one = problem(of, gpu.PRODUCT)
    candidate = one.candidates[-1]
    assert one.check(candidate) is None
    tuned = gncompile.compile(
        deep, "mse", example, tune={one.subject.name: candidate.options}, **options
    )
    assert "product_settings=MatrixSettings(block_m=" in tuned.source
    assert tuned.variants == {one.subject.name: candidate.options}


def test_inverses_are_refined_from_a_guess() -> None:
    one = problem(bench(inverse="newton_schulz"), f"grouped_{Kind.INVERSE}")
    one.scratch.refill()
    assert "relative error" in str(one.scratch.difference(one._allowed)), "of the guess itself"
    assert one.check(one.candidates[0]) is None


def test_a_plain_product_may_be_the_librarys() -> None:
    of = bench()
    plain = next(p for p in of.problems(of.keys) if any(c.options == LIBRARY for c in p.candidates))
    library = next(c for c in plain.candidates if c.options == LIBRARY)
    assert plain.check(library) is None
    assert plain.measure(library) > 0
    tuned = compiled({plain.subject.name: LIBRARY})
    assert "library_product(" in tuned.source
    assert "library_product(" not in compiled("off").source


def test_candidates_are_checked_on_the_same_operands_whatever_was_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An average in place moves with every run; a check begins anew."""
    monkeypatch.setattr(gpu_work, "SMALL", 16)
    one = problem(bench(average=0.9), "grouped_elementwise")
    candidate = one.candidates[0]
    assert one.check(candidate) is None
    one.measure(candidate)
    assert one.check(candidate) is None


def test_a_wrong_but_fast_candidate_is_rejected(
    moments_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = GpuBench.calls

    def twice(self: GpuBench, subject: Subject, options: Options) -> list[Call]:
        found = calls(self, subject, options)
        if options.get("block_m") != BLOCK_M:
            return found
        return [replace(call, words=tuple(map(doubled, call.words))) for call in found]

    def doubled(word: tuple[str, Expression]) -> tuple[str, Expression]:
        return ("alpha", "2 / N") if word == ("alpha", "1 / N") else word

    monkeypatch.setattr(GpuBench, "calls", twice)
    monkeypatch.setattr(gpu, "by_clock", stopwatch)
    of = bench(gather_noise=None)
    (outcome,) = search(of.problems(of.keys), "quick", budget=1000.0).outcomes
    assert outcome.options == DEFAULT
    wrong = [t for t in outcome.trials if t.options.get("block_m") == BLOCK_M]
    assert wrong
    assert all("relative error" in str(t.rejected) and t.seconds is None for t in wrong)


def test_a_candidate_that_spills_is_rejected(
    moments_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run: Callable[[Launch], Any] = Launch.run

    class Handle:
        n_spills = 3

    monkeypatch.setattr(Launch, "run", lambda self: (run(self), Handle())[1])
    of = bench(gather_noise=None)
    (one,) = of.problems(of.keys)
    default, other, *_ = one.candidates
    assert one.check(default) is None, "there is no other to fall back to"
    assert one.check(other) == "3 registers spilled"


def test_options_of_another_kind_are_not_allowed() -> None:
    of = bench()
    tile: Options = {"block_m": 8, "block_n": 32, "num_warps": 4}
    matrix: Options = {
        "block_m": 32, "block_n": 64, "block_k": 16, "num_warps": 4, "num_stages": 2, "group": 8,
        "split": 1,
    }  # fmt: skip
    assert of.allowed("grouped_gemm", matrix)
    assert of.allowed("elementwise", tile)
    assert not of.allowed("elementwise", matrix)
    assert not of.allowed("gemm", tile)
    assert not of.allowed("congruence", matrix), "tiles must be square"
    assert not of.allowed("gemm", {**matrix, "block_m": "32) or print("})
    assert not of.allowed("gemm", {**matrix, "block_m": 33})
    assert not of.allowed("congruence_product", LIBRARY)
    assert not of.allowed("nothing", DEFAULT)


def test_launches_of_one_shape_share_a_key_unless_they_differ() -> None:
    """Names do not matter, what is computed does."""
    deep = nn.Sequential(
        *(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Sigmoid()),
        nn.Linear(6, 3),
    )
    trainer = gncompile.compile(deep, "mse", torch.zeros(9, 6), backend="triton", tune="off")
    dims = {"N": 9, "F": 9, "Q": 9, "L": 9, "S": 1}
    of = GpuBench(trainer.program, dims, torch.float32, "highest", torch.device("cpu"))
    first, second, third = (
        of.keys[name] for name in ("a_layer_1_tanh", "a_layer_3_tanh", "a_layer_5_sigmoid")
    )
    assert first == second
    assert third != first
    assert (third.source, third.shape) == (first.source, first.shape)


# --- pruning ------------------------------------------------------------------------------------------


def test_pruning_is_by_the_devices_memory_registers_and_the_model() -> None:
    of = bench()
    space = problem(of, "gemm").space
    assert space.size == len(space.candidates) + sum(space.removed.values())
    smaller = GpuBench(of.program, of.dims, of.dtype, "highest", of.place, FIGURES[80])
    smaller.target = gpu_work.Figures(80, 108, 4096, 2e12, 5e12, FIGURES[80].flops)
    tight = problem(smaller, "gemm").space
    assert tight.size == space.size
    assert tight.removed["shared memory"] > space.removed.get("shared memory", 0)
    assert len(tight.candidates) < len(space.candidates)


# --- compile ------------------------------------------------------------------------------------------


def test_tuning_changes_the_emitted_step_and_the_store_serves_the_next(
    favoured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned = compiled("quick")
    assert f"block_m={BLOCK_M}" in tuned.source
    assert Store.open(INTERPRETER).entries
    assert not Store.open("cpu").entries

    def measure(self: GpuProblem, candidate: Candidate) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(GpuProblem, "measure", measure)
    for tune in ("cached", "quick"):
        again = compiled(tune)
        assert (again.source, again.variants) == (tuned.source, tuned.variants)
    assert compiled("off").source_file != tuned.source_file


def test_a_tuned_step_gives_the_numbers_of_the_default_one(
    favoured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64 sums in another order are 1e-16 apart, times the inverses' condition of about 10."""
    options = {"layer_steps": 0, "momentum": False}
    tuned, off = (compiled(tune, torch.float64, **options) for tune in ("quick", "off"))
    assert tuned.variants
    monkeypatch.setattr(step_check, "PAIRS", (1, 1))
    found = step_check.compare(off, tuned, SAMPLES, end=0.0)
    assert found.difference < 1e-10
    assert found.default > 0


def test_settings_that_a_program_does_not_know_are_left_out() -> None:
    with pytest.warns(TuningWarning, match="no such variants of grad_0;"):
        assert compiled({"grad_0": {"block": 128}}).variants == {}


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return curves_model(
        tmp_path, SIZES[0], SIZES[1], SAMPLES, '[training.options]\nbackend = "triton"\n'
    )


def test_the_command_tunes_lists_and_explains(
    favoured: None, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit, match="0"):
            main(["tune", *arguments])
        return capsys.readouterr().out

    assert f"block_m={BLOCK_M}" in run(str(model), "--budget", "1000s")
    assert "grouped_cross_moment" in run("--list")
    assert "chosen" in run("--explain", "grouped_cross_moment", "--device", INTERPRETER)


def test_an_interrupted_tune_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    kinds = (Kind.CROSS_MOMENT, Kind.SECOND_MOMENT)
    monkeypatch.setattr(gpu, "SOURCES", {kind: gpu.SOURCES[kind] for kind in kinds})
    measured: list[object] = []

    def measure(self: GpuProblem, candidate: Candidate) -> float:
        measured.append(self.key)
        if len(set(measured)) > 1:
            raise KeyboardInterrupt
        return FAST if candidate.options else SLOW

    monkeypatch.setattr(GpuProblem, "measure", measure)
    with pytest.raises(SystemExit, match="130"):
        main(["tune", str(model)])
    assert len(Store.open(INTERPRETER).entries) == 1
