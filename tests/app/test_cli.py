"""The command line, end to end on a small model: results, errors, interruption and resume."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import losses, run
from safetensors.torch import load_file
from small_model import HEAD, write_model
from torch import nn

import gncompile
from gncompile.app.run_folder import RunFolder
from gncompile.app.training_run import TrainingRun, load_data
from gncompile.errors import BatchError, ModelFileError
from gncompile.frontends.model_file import load_model_file

pytestmark = pytest.mark.usefixtures("without_pictures")

MODEL = f"""{HEAD}dtype = "float64"
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model file and images of 3×3 pixels that two numbers describe."""
    return write_model(tmp_path, MODEL)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that nothing interrupted, beside its model file, and what it printed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with redirect_stdout(io.StringIO()) as shown:
        assert run("train", write_model(out.parent, MODEL), "--out", out, "--quiet") == 0
    return out, shown.getvalue()


@pytest.fixture(scope="module")
def whole(told: tuple[Path, str]) -> Path:
    """The folder of that run."""
    return told[0]


# --- Training


def test_train_writes_the_run_folder(told: tuple[Path, str]) -> None:
    out, shown = told
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
    assert "layer4" in (out / "derivation/index.html").read_text()
    for text in ("# small", "loss, 8 validation samples", "reconstructions.png", "30 updates made"):
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


KILLED = """
import os, signal, sys
from gncompile.app.cli import main
from gncompile.app.run_folder import RunFolder

append = RunFolder.append

def append_and_end(folder, record):
    append(folder, record)
    if record["update"] == 13:
        os.kill(os.getpid(), signal.SIGKILL)

RunFolder.append = append_and_end
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_an_interrupted_training_resumes_bitwise(
    model: Path,
    name: str,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts, append = model.parent / "parts", RunFolder.append
    arguments = ["train", str(model), "--out", str(parts), "--checkpoint-every", "5", "--quiet"]

    def append_and_interrupt(folder: RunFolder, record: dict[str, object]) -> None:
        append(folder, record)
        if record["update"] == 13:
            os.kill(os.getpid(), signal.SIGINT)

    if name == "SIGINT":
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "append", append_and_interrupt)
            assert run(*arguments) == 130
        shown = capsys.readouterr().out
        assert "stopped after 13 updates" in shown
        assert f"gncompile resume {parts}" in shown
    else:
        killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
        assert killed.returncode == -signal.SIGKILL
    assert len(losses(parts)) == 13
    assert run("resume", parts, "--quiet") == 0
    assert losses(parts) == losses(whole)
    assert (parts / "report.md").exists()


def test_resuming_a_finished_run_changes_nothing(model: Path) -> None:
    out = model.parent / "out"
    assert run("train", model, "--out", out, "--updates", 4, "--quiet") == 0
    before = losses(out)
    assert run("resume", out, "--quiet") == 0
    assert losses(out) == before


def test_the_weights_file_has_the_reported_losses(whole: Path) -> None:
    file = load_model_file(whole.parent / "model.toml")
    network = file.build(seed=7)
    network.load_state_dict(load_file(whole / "weights.safetensors"))
    data = load_data(file)
    with torch.no_grad():
        z, y = network(data.validation_x), data.validation_y
        loss = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="sum") / len(y)
    (reported,) = re.findall(r"validation samples +(\S+)", (whole / "report.md").read_text())
    assert float(reported) == pytest.approx(float(loss), rel=1e-5)


def test_a_run_killed_before_its_first_update_can_be_resumed(model: Path, whole: Path) -> None:
    out = model.parent / "out"
    started = TrainingRun.start(model, out, updates=4, progress=False)
    started.folder.release()  # as the system does for a process that is killed
    assert run("train", model, "--out", out, "--quiet") == 1
    assert run("resume", out, "--quiet") == 0
    assert len(losses(out)) == 4
    assert losses(out) == losses(whole)[:4]


def test_a_run_in_progress_is_not_resumed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "out"
    held = TrainingRun.start(model, out, updates=4, progress=False)
    assert run("resume", out) == 1
    assert "in use by another process" in capsys.readouterr().err
    held.folder.release()


def test_nothing_is_learnt_from_other_data(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.parent / "out"
    TrainingRun.start(model, out, updates=4, progress=False).folder.release()
    images = model.parent / "images.npz"
    x = np.load(images)["x"]
    x[3, 1, 1] += 0.125
    np.savez(images, x=x)
    assert run("resume", out) == 1
    assert "not those that the run was started with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change", [{"updates": "4"}, {"seed": -1}, {"base": 3}, {"more": 1}, {"epochs": 2}]
)
def test_a_changed_run_record_is_refused(
    model: Path, change: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    out = model.parent / "out"
    TrainingRun.start(model, out, updates=4, progress=False).folder.release()
    record = json.loads((out / "run.json").read_text())
    record["settings"].update(change)
    (out / "run.json").write_text(json.dumps(record))
    assert run("resume", out) == 1
    assert "run.json" in capsys.readouterr().err


def test_resume_writes_through_no_link(model: Path, pictures: None) -> None:
    out, victim = model.parent / "out", model.parent / "victim"
    assert run("train", model, "--out", out, "--updates", 2, "--quiet") == 0
    victim.mkdir()
    for name in ("index.html", "history.jsonl", "weights.safetensors"):
        (victim / name).write_text("MINE")
    shutil.rmtree(out / "derivation")
    (out / "derivation").symlink_to(victim)
    for name in ("weights.safetensors", "report.md", ".lock"):
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(victim / "weights.safetensors")
    assert run("resume", out, "--quiet") == 0
    assert {each.read_text() for each in victim.iterdir()} == {"MINE"}
    assert not (out / "derivation").is_symlink()
    assert (out / "derivation" / "index.html").is_file()


TABLE = """
[model]
name = "prices"
[data]
name = "t.csv"
targets = ["y", "z"]
[network]
layers = [1, 3, 1]
[loss]
name = "mse"
[training]
batch_size = 8
updates = 2
"""


def test_outputs_that_do_not_fit_leave_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{i / 20},{i % 3},{i % 5}" for i in range(20)]
    (tmp_path / "t.csv").write_text("\n".join(["x,y,z", *rows]))
    file, out = tmp_path / "m.toml", tmp_path / "out"
    file.write_text(TABLE)
    for command in ("train", "compare"):
        assert run(command, file, "--out", out) == 1
        shown = capsys.readouterr().err
        assert "targets, 2 numbers a sample, of a network with 1 outputs" in shown
        assert "the last of layers" in shown
        assert not out.exists()
    file.write_text(TABLE.replace("3, 1]", "3, 2]"))
    assert run("train", file, "--out", out, "--quiet") == 0


def test_a_failed_first_step_leaves_no_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise BatchError("the loss is nan")

    out = model.parent / "out"
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "_fit", fails)
        assert run("train", model, "--out", out) == 1
    assert not out.exists()
    assert run("train", model, "--out", out, "--updates", 1, "--quiet") == 0


# --- Where files may lie


def test_data_elsewhere_need_to_be_allowed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (model.parent / "images.npz").rename(elsewhere / "images.npz")
    (model.parent / "home").mkdir()
    file = model.rename(model.parent / "home" / "m.toml")
    (file.parent / "link.npz").symlink_to(elsewhere / "images.npz")
    for name in (str(elsewhere / "images.npz"), "../elsewhere/images.npz", "link.npz"):
        file.write_text(MODEL.replace("images.npz", name))
        with pytest.raises(ModelFileError, match="lies outside the model file's folder"):
            load_model_file(file)
        assert load_model_file(file, data_root=elsewhere).data.name.endswith(name)
    out = tmp_path / "out"
    given = ("train", file, "--out", out, "--updates", 1, "--quiet")
    assert run(*given) == 1
    assert "--data-root DIR" in capsys.readouterr().err
    assert run(*given, "--data-root", elsewhere) == 0
    assert run("resume", out, "--quiet") == 0


def test_a_models_name_is_no_path(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = model.parent / "work"
    work.mkdir()
    for each in (model, model.parent / "images.npz"):
        each.rename(work / each.name)
    (model.parent / "photo.png").write_text("MINE")
    text = MODEL.replace('"small"', f'"{model.parent}/photo $_"')  # no formula for pictures either
    (work / "model.toml").write_text(text)
    monkeypatch.chdir(work)
    common = ("--updates", 1)
    assert run("train", "model.toml", *common, "--quiet") == 0
    compared = ("compare", "model.toml", "--optimisers", "adam", *common, "--no-search")
    for out in ((), ("--out", "safe")):
        assert run(*compared, *out) == 0
    assert {each.name for each in model.parent.iterdir()} == {"work", "photo.png"}
    assert (model.parent / "photo.png").read_text() == "MINE"


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


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"gncompile {gncompile.__version__}\n"


# --- Errors


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("explain", "--html", "model.toml"), "a file stands where a folder is needed"),
        (("emit", "-o", "model.toml"), "a file stands where a folder is needed"),
        (("explain", "--html", "model.toml/x"), "a file stands where a folder is needed"),
        (("explain", "--latex", "model.toml"), "would be replaced"),
        (("explain", "--latex", "taken"), "a folder stands where a file is needed"),
        (("train", "--out", "model.toml"), "is in use"),
        (("train", "--out", "a" * 300), "choose a shorter path"),
    ],
)
def test_places_that_cannot_be_written(
    model: Path,
    pictures: None,
    arguments: tuple[str, ...],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(model.parent)
    (model.parent / "taken").mkdir()
    command, *rest = arguments
    assert run(command, "model.toml", *rest) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert expected in shown
    assert "Traceback" not in shown
    assert model.read_text() == MODEL


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, os.strerror(28), "f"), "error: No space left on device\n  where:      f\n"),
        (PermissionError(13, os.strerror(13), "f"), "error: Permission denied\n  where:      f\n"),
        (MemoryError(), "error: the memory does not suffice"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "error: the memory does not"),
        (RecursionError(), "error: something in the input is nested too deeply"),
        (KeyError("x"), "internal error: KeyError: 'x'"),
    ],
)
def test_whatever_is_raised_ends_in_a_text(
    model: Path,
    error: Exception,
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("gncompile.app.runs.compile_file", fails)
    monkeypatch.setattr(tempfile, "tempdir", str(model.parent))
    assert run("explain", model) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(expected)
    assert "Traceback" not in shown
    reports = list(model.parent.glob("gncompile-error-*.txt"))
    assert len(reports) == isinstance(error, KeyError)
    for report in reports:  # which the text names
        assert str(report) in shown.replace("\n", "")
        assert "in fails" in report.read_text()


def test_an_interrupt_anywhere(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gncompile.app.runs.compile_file", interrupted)
    assert run("explain", model) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_data_in_place_of_a_model_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n")
    assert run("train", tmp_path / "rows.csv") == 1
    assert "gncompile init rows.csv" in capsys.readouterr().err


def test_errors_show_no_control_characters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("explain", tmp_path / "\x1b[2J.toml") == 1
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "x1b[2J.toml" in shown


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
    ("arguments", "code", "expected"),
    [
        (("tune", "--list", "--budget", "5"), 1, "has no unit"),
        (("tune", "--list", "--budget", "soon"), 1, "is no time"),
        (("tune", "--list", "--device", "tpu"), 1, "unknown kind of device 'tpu'"),
        (("tune", "--list", "--effort", "ful"), 1, "Did you mean 'full'?"),
        (("compare", "m.toml", "--optimisers", " ,"), 2, "names none"),
        (("train", "m.toml", "--data-root", "absent"), 2, "does not exist"),
    ],
)
def test_words_that_mean_nothing(
    arguments: tuple[str, ...], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    assert expected in " ".join(capsys.readouterr().err.split())


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
