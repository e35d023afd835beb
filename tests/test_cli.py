"""The command line, end to end on a small model: results, errors, interruption and resume."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_model import HEAD, write_model

import gncompile
from gncompile.cli import main
from gncompile.run_folder import RunFolder

MODEL = f"""{HEAD}dtype = "float64"
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file and images of 3×3 pixels that two numbers describe."""
    return write_model(tmp_path, MODEL)


def run(*arguments: object) -> int:
    """The exit code of ``gncompile ARGUMENTS``."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def losses(folder: Path) -> list[float]:
    records = RunFolder(folder).history()
    assert [record["update"] for record in records] == list(range(1, len(records) + 1))
    return [record["loss"] for record in records]


# --- Training


def test_train_writes_the_run_folder(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "out"
    assert run("train", model, "--out", out, "--quiet") == 0
    shown = capsys.readouterr().out
    names = ["checkpoint.safetensors", "history.jsonl", "loss.png", "model.toml"]
    for name in [*names, "reconstructions.png", "report.md", "run.json"]:
        assert (out / name).exists(), name
        assert str(out / name) in shown
    assert (out / "model.toml").read_text() == MODEL
    history = losses(out)
    assert len(history) == 30
    assert history[-1] < history[0]
    assert "small" in (out / "derivation/index.html").read_text()
    report = (out / "report.md").read_text()
    for text in ("# small", "loss, 8 validation samples", "reconstructions.png", "layer4"):
        assert text in report


def test_default_folder_is_named_after_the_model(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    for name in ("small", "small-2"):
        assert run("train", "model.toml", "--updates", 2, "--quiet") == 0
        assert len(losses(model.parent / "runs" / name)) == 2


def test_options_go_before_the_model_file(model: Path) -> None:
    outs = [model.parent / name for name in "abc"]
    for out, seed in zip(outs, (1, 1, 2), strict=True):
        assert run("train", model, "--out", out, "--epochs", 1, "--seed", seed, "--quiet") == 0
    a, b, c = map(losses, outs)
    assert len(a) == 5  # 72 samples in batches of 16
    assert a == b
    assert a != c


INTERRUPTED_BY = """
import os, signal, sys
from gncompile.cli import main
from gncompile.run_folder import RunFolder

append = RunFolder.append

def append_and_interrupt(folder, record):
    append(folder, record)
    if record["update"] == 13:
        os.kill(os.getpid(), signal.{signal})

RunFolder.append = append_and_interrupt
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_interrupted_training_resumes_bitwise(model: Path, name: str) -> None:
    whole, parts = model.parent / "whole", model.parent / "parts"
    assert run("train", model, "--out", whole, "--quiet") == 0
    arguments = ["train", str(model), "--out", str(parts), "--checkpoint-every", "5", "--quiet"]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_BY.format(signal=name), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(losses(parts)) == 13
    if name == "SIGINT":
        assert done.returncode == 130, done.stderr
        assert "stopped after 13 updates" in done.stdout
        assert f"gncompile resume {parts}" in done.stdout
    else:
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert run("resume", parts, "--quiet") == 0
    assert losses(parts) == losses(whole)
    assert (parts / "report.md").exists()


def test_resuming_a_finished_run_changes_nothing(model: Path) -> None:
    out = model.parent / "out"
    assert run("train", model, "--out", out, "--updates", 4, "--quiet") == 0
    before = losses(out)
    assert run("resume", out, "--quiet") == 0
    assert losses(out) == before


# --- The other commands


def test_explain(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", model) == 0
    whole = capsys.readouterr().out
    assert run("explain", model, "--layer", "layer2") == 0
    one = capsys.readouterr().out
    assert "layer2" in one
    assert "layer4" in whole
    assert len(one) < len(whole)


def test_emit(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "source"
    assert run("emit", model, "-o", out) == 0
    paths = [Path(line) for line in capsys.readouterr().out.split()]
    assert paths
    for path in paths:
        assert out in path.parents
        compile(path.read_text(), str(path), "exec")


def test_verify(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", model) == 0
    assert "layer3" in capsys.readouterr().out


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("env") == 0
    shown = capsys.readouterr().out
    assert gncompile.__version__ in shown
    assert "GNCOMPILE_DATA" in shown


# --- Errors


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("layers", "layer", "Did you mean 'layers'?"),
        ('"images.npz"', '"image.npz"', "no data file"),
        ("[9, 6, 3, 6, 9]", "[8, 6, 3, 6, 9]", "the network does not fit the data"),
        ("[loss]", "[training.options]\ndampin = 1\n[loss]", "Did you mean 'damping'?"),
        ("bce_with_logits", "bce", "unknown loss 'bce'"),
    ],
)
def test_errors_have_no_traceback(
    model: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, expected: str
) -> None:
    model.write_text(MODEL.replace(old, new))
    out = model.parent / "out"
    assert run("train", model, "--out", out) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert expected in shown
    assert "Traceback" not in shown
    assert not out.exists()


def test_a_folder_in_use_is_not_overwritten(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model.parent / "out"
    out.mkdir()
    (out / "mine").write_text("keep")
    assert run("train", model, "--out", out) == 1
    assert "in use" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_resume_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("resume", tmp_path) == 1
    assert "not a run folder" in capsys.readouterr().err


def test_corrupt_checkpoint(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "out"
    assert run("train", model, "--out", out, "--updates", 2, "--quiet") == 0
    checkpoint = out / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    assert run("resume", out) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: the checkpoint is damaged")
    assert str(checkpoint) in shown


def test_checkpoint_of_another_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "out"
    assert run("train", model, "--out", out, "--updates", 2, "--quiet") == 0
    changed = MODEL.replace("[9, 6, 3, 6, 9]", "[9, 5, 3, 6, 9]")
    (out / "model.toml").write_text(changed)
    assert run("resume", out) == 1
    shown = capsys.readouterr().err
    assert "the checkpoint belongs to another model" in shown
    assert "layer1.weight\n  expected: [5, 9]\n  got:      [6, 9]" in shown


def test_a_run_stopped_before_its_first_checkpoint(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = model.parent / "out"
    assert run("train", model, "--out", out, "--updates", 2, "--quiet") == 0
    (out / "checkpoint.safetensors").unlink()
    assert run("resume", out) == 1
    assert "no checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["train"], ["trian", "x"], ["train", "x", "--updates", "0"], ["emit", "x"]]
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "Usage" in capsys.readouterr().err


def test_two_lengths_are_wrong_usage(model: Path) -> None:
    assert run("train", model, "--updates", 1, "--epochs", 1) == 2


def test_run_record(model: Path) -> None:
    out = model.parent / "out"
    assert run("train", model, "--out", out, "--updates", 1, "--quiet") == 0
    record = json.loads((out / "run.json").read_text())
    assert record["settings"]["updates"] == 1
    assert record["environment"]["gncompile"] == gncompile.__version__
