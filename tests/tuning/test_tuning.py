"""Tuning a compiled step: problems of the torch backend, ``compile(tune=...)``, checkpoints, the command."""

from __future__ import annotations

import itertools
import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_model import curves_model
from torch import nn

import gncompile
from gncompile.app import tune_command as command
from gncompile.app.cli import main
from gncompile.base import config
from gncompile.errors import CompileError, GncompileError
from gncompile.program.operations import DampedInverse
from gncompile.training.trainer import Trainer
from gncompile.tuning import step_check, tuner
from gncompile.tuning.cpu import CpuProblem
from gncompile.tuning.problem import Candidate, Key
from gncompile.tuning.step_check import StepComparison, compare
from gncompile.tuning.store import Store, TuningWarning

FAST, SLOW = 0.001, 0.004
SAMPLES = 40


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> Iterator[None]:
    with config.using(tuning=tmp_path / "tuning"):
        yield


@pytest.fixture
def favoured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements in which ``border=1`` and ``block=128`` win, and a step that is as fast with them."""

    def measure(self: CpuProblem, candidate: Candidate) -> float:
        return FAST if candidate.options in ({"border": 1}, {"block": 128}) else SLOW

    monkeypatch.setattr(CpuProblem, "measure", measure)
    ticks = itertools.count()
    monkeypatch.setattr(step_check.compare, "__defaults__", (lambda: float(next(ticks)),))
    monkeypatch.setattr(step_check, "PAIRS", (4, 4))


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring fails."""

    def measure(self: CpuProblem, candidate: Candidate) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(CpuProblem, "measure", measure)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(300, 9), nn.Tanh(), nn.Linear(9, 5))


def batch(samples: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(samples, 300, generator=generator),
        torch.rand(samples, 5, generator=generator),
    )


def compiled(tune: tuner.Tune, **options: object) -> Trainer:
    return gncompile.compile(network(), "mse", batch()[0], tune=tune, **options)  # type: ignore[arg-type]


# --- compile ------------------------------------------------------------------------------------------


def test_tuning_changes_the_emitted_step_and_the_store_serves_the_next(favoured: None) -> None:
    tuned = compiled("quick")
    assert "border=1)" in tuned.source
    assert "block=128)" in tuned.source
    off = compiled("off")
    assert "border" not in off.source
    assert off.source_file != tuned.source_file


def test_tuning_leaves_the_model_and_the_random_numbers_alone() -> None:
    """Operations and whole steps are really run, on copies."""
    model = network()
    before = [p.detach().clone() for p in model.parameters()]
    gncompile.compile(model, "mse", batch()[0], tune="quick")
    after = torch.rand(1)
    for one, other in zip(before, model.parameters(), strict=True):
        assert torch.equal(one, other)
    network()
    gncompile.compile(model, "mse", batch()[0], tune="off")
    assert torch.equal(after, torch.rand(1))


def test_a_second_compile_measures_nothing(favoured: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tuned = compiled("quick")

    def measure(self: CpuProblem, candidate: Candidate) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(CpuProblem, "measure", measure)
    for tune in ("cached", "quick"):
        again = compiled(tune)
        assert again.source == tuned.source
        assert again.variants == tuned.variants
    with pytest.raises(AssertionError, match="measured"):
        compiled("full")


def test_cached_without_a_store_is_the_default(unmeasured: None) -> None:
    assert compiled("cached").source == compiled("off").source
    assert compiled("cached").variants == {}


def test_a_near_batch_size_uses_the_nearest_settings(favoured: None) -> None:
    tuned = compiled("quick")
    near = gncompile.compile(network(), "mse", batch(SAMPLES + 3)[0])
    assert near.variants == tuned.variants
    far = gncompile.compile(network(), "mse", batch(8 * SAMPLES)[0])
    # The moments have other shapes then; the inverses have not.
    assert {tuple(options) for options in far.variants.values()} == {("border",)}


@pytest.mark.parametrize("backend", ["reference"])
def test_other_backends_have_nothing_to_tune(unmeasured: None, backend: str) -> None:
    assert compiled("full", backend=backend).variants == {}


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(CompileError, match=r"unknown tune='quik'. Did you mean 'quick'\?"):
        compiled("quik")


def test_tuned_and_default_steps_agree(favoured: None) -> None:
    """Same mathematics: after a step the parameters differ by rounding only."""
    tuned, off = compiled("quick"), compiled("off")
    assert tuned.variants
    for trainer in (tuned, off):
        trainer.step(*batch())
    for one, other in zip(tuned.trained().values(), off.trained().values(), strict=True):
        # float32 rounding, times the damped inverses' condition number of about 1e3.
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_step_that_is_slower_keeps_the_defaults(
    favoured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slower = StepComparison(1.0, 1.2, 0.8, 0.01, 0.0)
    monkeypatch.setattr(tuner, "compare", lambda *arguments: slower)
    assert compiled("quick").variants == {}
    assert all(not e.options for e in Store.open().entries)
    assert any("the whole step was slower" in e.note for e in Store.open().entries)


def test_a_step_that_disagrees_keeps_the_defaults(
    favoured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = StepComparison(1.0, 0.1, 10.0, 0.01, 0.7)
    monkeypatch.setattr(tuner, "compare", lambda *arguments: wrong)
    assert compiled("quick").variants == {}


def test_the_step_check_sees_a_wrong_update() -> None:
    one, other = compiled("off"), compiled("off")
    with torch.no_grad():
        for p in other.trained().values():
            p.mul_(1.5)
    ticks = itertools.count()
    assert not compare(one, other, SAMPLES, 0.0, lambda: float(next(ticks))).agrees


def test_the_step_check_counts_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock on which every tuned step takes half as long, whichever comes first."""
    monkeypatch.setattr(step_check, "PAIRS", (4, 4))
    durations = itertools.cycle([2.0, 1.0, 1.0, 2.0])
    now, calls = 0.0, itertools.count()

    def clock() -> float:
        nonlocal now
        if next(calls) % 2:
            now += next(durations)
        return now

    found = compare(compiled("off"), compiled("off"), SAMPLES, 0.0, clock)
    assert found.ratio == pytest.approx(2.0)
    assert found.error == 0
    assert found.difference == 0
    assert found.kept
    assert "tuned 2.000 ± 0.000 times as fast" in str(found)


@pytest.mark.parametrize(
    ("ratio", "difference", "kept"),
    [
        (1.1, 0.0, True),
        (1.0, 0.01, True),
        (0.99, 0.0, False),
        (1.1, 0.5, False),
        (1.1, math.nan, False),
    ],
)
def test_a_tuned_step_has_to_agree_and_not_to_be_slower(
    ratio: float, difference: float, kept: bool
) -> None:
    assert StepComparison(1.0, 1.0, ratio, 0.1, difference).kept is kept


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "poisson_nll", "bce_with_logits"])
def test_the_step_check_has_a_batch_for_every_loss(loss: str) -> None:
    trainer = gncompile.compile(network(), loss, batch()[0])
    stats = trainer.step(*step_check.random_batch(trainer, SAMPLES))
    assert math.isfinite(stats.loss)


def test_a_store_that_cannot_be_written_still_serves_this_compile(
    favoured: None, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with (
        config.using(tuning=tmp_path / "file" / "inside"),
        pytest.warns(TuningWarning, match="are not kept"),
    ):
        assert compiled("quick").variants


# --- pinned files and checkpoints ---------------------------------------------------------------------


def test_a_pinned_file_gives_the_same_step_without_a_store(favoured: None, tmp_path: Path) -> None:
    tuned = compiled("quick")
    path = tmp_path / "pinned.json"
    Store.open().export(path)
    with config.using(tuning=tmp_path / "empty"):
        for given in (path, str(path)):
            assert compiled(given).source == tuned.source


def test_a_missing_pinned_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GncompileError, match="the file of tuned settings cannot be read"):
        compiled(tmp_path / "none.json")


def trained(trainer: Trainer) -> list[torch.Tensor]:
    return [p.clone() for p in trainer.trained().values()]


@pytest.mark.parametrize("tuned_first", [True, False])
def test_resume_is_bitwise_whatever_is_tuned_in_between(
    favoured: None, tmp_path: Path, tuned_first: bool
) -> None:
    """A checkpoint holds its variants: neither new settings nor lost ones change how it goes on."""
    trainer = compiled("quick" if tuned_first else "off")
    trainer.step(*batch())
    trainer.save(tmp_path / "checkpoint.safetensors")
    for _ in range(3):
        trainer.step(*batch())
    if tuned_first:
        Store.open().clear()
    else:
        assert compiled("quick").variants
    resumed = Trainer.resume(tmp_path / "checkpoint.safetensors", network())
    assert resumed.source == trainer.source
    for _ in range(3):
        resumed.step(*batch())
    for one, other in zip(trained(trainer), trained(resumed), strict=True):
        assert torch.equal(one, other)


def test_variants_a_program_does_not_have_are_left_out_with_a_warning() -> None:
    known = compiled("off").program
    inverse = next(i.name for i in known if isinstance(i.op, DampedInverse) and i.spec.shape)
    given = {inverse: {"border": 1}, "nothing": {"border": 1}}
    with pytest.warns(TuningWarning, match="no such variants of nothing;"):
        assert compiled(given).variants == {inverse: {"border": 1}}
    with pytest.warns(TuningWarning, match="no such variants"):
        assert compiled({inverse: {"border": "1) or print(1"}}).variants == {}


# --- the command --------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return curves_model(tmp_path, 300, 9)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:  # how the parser ends a command
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_tune_list_explain_export_import_clear(
    favoured: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, "tune", model, "--budget", "100s")
    assert code == 0
    assert "small, batches of 40" in text
    assert "block=128" in text
    assert "whole step: tuned 1.000" in text
    listed = run(capsys, "tune", "--list")[1]
    assert "damped_inverse" in listed
    assert "stale" not in listed
    explained = run(capsys, "tune", "--explain", "damped_inverse")[1]
    assert "predicted" in explained
    assert "chosen" in explained
    assert run(capsys, "tune", "--export", tmp_path / "x.json")[0] == 0
    assert run(capsys, "tune", "--clear")[0] == 0
    assert "no tuned settings in" in run(capsys, "tune", "--list")[1]
    assert run(capsys, "tune", "--import", tmp_path / "x.json")[0] == 0
    assert json.loads((tmp_path / "x.json").read_text())["entries"]
    assert "damped_inverse" in run(capsys, "tune", "--list")[1]
    assert run(capsys, "emit", model, "--out", tmp_path / "emitted")[0] == 0
    assert "block=128" in (tmp_path / "emitted" / "training_step.py").read_text()


def test_a_budget_that_is_too_short_shows_no_empty_table(
    favoured: None, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = run(capsys, "tune", model, "--budget", "0.000001s")
    assert code == 0
    assert re.search(r"on .*\n\n\d+ not reached within the budget; defaults kept\n", text)
    assert "default ms" not in text


def test_an_interrupted_tune_keeps_what_was_found(
    monkeypatch: pytest.MonkeyPatch, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Key] = []

    def measure(self: CpuProblem, candidate: Candidate) -> float:
        measured.append(self.key)
        if len(set(measured)) > 2:
            raise KeyboardInterrupt
        return FAST if candidate.options else SLOW

    monkeypatch.setattr(CpuProblem, "measure", measure)
    code, text = run(capsys, "tune", model)
    assert code == 130
    assert "interrupted: what was found is kept" in text
    assert len(Store.open().entries) == 2


def test_a_model_file_pins_its_settings(
    favoured: None, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "tune", model)
    Store.open().export(tmp_path / "pinned.json")
    curves_model(tmp_path, 300, 9, options='tune = "pinned.json"\n')
    Store.open().clear()
    assert run(capsys, "emit", model, "--out", tmp_path / "emitted")[0] == 0
    assert "block=128" in (tmp_path / "emitted" / "training_step.py").read_text()
    curves_model(model.parent, 300, 9, options='tune = "quik"\n')
    assert "unknown tune='quik'" in run(capsys, "emit", model, "--out", tmp_path / "x")[1]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--explain", "affine"), "no tuned settings for 'affine'"),
        (("--export", "x.json"), "no tuned settings to export"),
        (("--import", "none.json"), "the file of tuned settings cannot be read"),
    ],
)
def test_an_empty_store_says_what_to_do(
    arguments: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, printed = run(capsys, "tune", *arguments)
    assert code == 1
    assert text in printed


def test_list_names_what_cannot_be_used(capsys: pytest.CaptureFixture[str]) -> None:
    path = Store.open().path
    path.parent.mkdir()
    path.write_text("{")
    assert "is damaged" in run(capsys, "tune", "--list")[1]


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60.0), ("2m", 120.0), ("1.5h", 5400.0), ("7", 7.0)]
)
def test_budgets(text: str, seconds: float) -> None:
    assert command.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-3s", "0", "1 day"])
def test_budgets_that_are_no_time(text: str) -> None:
    with pytest.raises(GncompileError, match="is no time"):
        command.seconds(text)


def test_nothing_warns_where_nothing_is_tuned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", TuningWarning)
        compiled("cached")
