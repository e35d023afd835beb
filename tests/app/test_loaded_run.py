"""A run folder as a model: loaded, prolonged, kept where a training fails, and asked by commands."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import losses, run
from safetensors.torch import load_file, save_file
from small_model import HEAD, write_model
from torch import nn

import gncompile
from gncompile.app.run_folder import RunFolder
from gncompile.app.training_run import TrainingRun
from gncompile.errors import BatchError, CheckpointError, DataError

pytestmark = pytest.mark.usefixtures("without_pictures")

UPDATES = 9
MODEL = HEAD.replace("updates = 30", f"updates = {UPDATES}") + 'dtype = "float64"\n'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of :data:`UPDATES` updates, beside its model file and data; nobody changes it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert run("train", write_model(out.parent, MODEL), "--out", out, "--quiet") == 0
    return out


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, in a folder of its own."""
    shutil.copytree(trained.parent, tmp_path / "copied")
    return tmp_path / "copied" / "run"


# --- Loading


def test_the_module_has_the_weights_of_the_file(trained: Path) -> None:
    loaded = gncompile.load(trained)
    weights = load_file(trained / "weights.safetensors")
    assert set(weights) == set(loaded.module.state_dict())
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, weights[name]), name
        assert torch.equal(tensor, loaded.trainer.model.state_dict()[name]), name
    split = loaded.data()
    found = loaded.trainer.evaluate(split.validation_x, split.validation_y)
    assert loaded.evaluate()["loss"] == pytest.approx(found, rel=1e-12)
    before = weights["layer1.weight"].clone()
    loaded.trainer.step(split.train_x, split.train_y)
    assert torch.equal(loaded.module.state_dict()["layer1.weight"], before)
    assert repr(loaded) == f"Run({str(trained)!r}, 'small')"


def test_predictions_need_no_training_data(copied: Path) -> None:
    x = np.load(copied.parent / "images.npz")["x"]
    record = json.loads((copied / "run.json").read_text())
    record["settings"]["base"] = str(copied)  # where the data are not
    (copied / "run.json").write_text(json.dumps(record))
    loaded = gncompile.load(copied)
    with torch.no_grad():
        outputs = loaded.module(torch.from_numpy(x).double().flatten(1)).sigmoid()
    for given in ({"x": x}, torch.from_numpy(x).flatten(1)):
        columns = loaded.predict(given)
        assert list(columns) == [f"x[{i}]" for i in range(9)]
        np.testing.assert_allclose(np.stack([*columns.values()], 1), outputs, rtol=1e-12)
        with torch.no_grad():
            direct = loaded.module(loaded.encode(given)).sigmoid()
        torch.testing.assert_close(direct, outputs, rtol=1e-12, atol=0.0)
    with pytest.raises(DataError, match="no data file"):
        loaded.evaluate()


def test_arrays_are_the_inputs(trained: Path) -> None:
    loaded = gncompile.load(trained)
    split = loaded.data()
    x, y = split.validation_x, split.validation_y
    assert isinstance(x, torch.Tensor)
    for name, column in loaded.predict(x).items():
        np.testing.assert_array_equal(loaded.predict(x.double().numpy())[name], column)
    assert loaded.evaluate((x.numpy(), y.numpy())) == loaded.evaluate((x, y))
    with pytest.raises(DataError, match=rf"expected: \[N, {x.shape[1]}\]\n  got:      \[2, 5\]"):
        loaded.predict(np.zeros((2, 5)))
    with pytest.raises(DataError, match="the data is of type list\n.*dict\\(frame\\)"):
        loaded.predict([[1.0]])  # type: ignore[arg-type]


def test_a_run_in_progress_has_the_weights_of_its_checkpoint(trained: Path, tmp_path: Path) -> None:
    model = shutil.copy(trained.parent / "model.toml", tmp_path)
    shutil.copy(trained.parent / "images.npz", tmp_path)
    started = TrainingRun.start(Path(model), tmp_path / "run", progress=False)
    started.folder.release()
    loaded = gncompile.load(tmp_path / "run")
    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, started.trainer.model.state_dict()[name])


def test_folders_that_do_not_belong_together(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        gncompile.load(tmp_path)
    weights = load_file(copied / "weights.safetensors")
    for changed, found in (
        ({**weights, "more": torch.zeros(1)}, "'more' is in only one"),
        ({**weights, "layer1.bias": torch.zeros(5)}, "layer1.bias has another shape"),
        ({name: t.float() for name, t in weights.items()}, "dtype"),
    ):
        save_file(changed, copied / "weights.safetensors")
        with pytest.raises(CheckpointError, match=found):
            gncompile.load(copied)
    (copied / "data.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"data\.json is damaged"):
        gncompile.load(copied)


# --- More updates


def test_more_updates_are_those_of_a_longer_run(
    trained: Path, copied: Path, tmp_path: Path
) -> None:
    longer = tmp_path / "longer"
    file = trained.parent / "model.toml"
    assert run("train", file, "--out", longer, "--updates", UPDATES + 5, "--quiet") == 0
    assert run("resume", copied, "--epochs", 1, "--quiet") == 0  # of five batches
    assert losses(copied) == losses(longer)
    assert losses(copied)[:UPDATES] == losses(trained)
    for name, tensor in load_file(longer / "weights.safetensors").items():
        assert torch.equal(tensor, load_file(copied / "weights.safetensors")[name]), name
    assert f"{UPDATES + 5} updates made" in (copied / "report.md").read_text()
    assert run("resume", copied, "--epochs", 1, "--updates", 1) == 2


def test_some_updates_of_an_interrupted_run_leave_its_end(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    for name in ("model.toml", "images.npz"):
        shutil.copy(trained.parent / name, tmp_path)
    TrainingRun.start(tmp_path / "model.toml", out, progress=False).folder.release()
    assert run("resume", out, "--updates", 2, "--quiet") == 0
    assert f"stopped after 2 updates; go on with: gncompile resume {out}" in capsys.readouterr().out
    assert not (out / "report.md").exists()
    assert run("resume", out, "--quiet") == 0
    assert losses(out) == losses(trained)
    assert run("resume", out, "--updates", 2, "--quiet") == 0
    assert len(losses(out)) == UPDATES + 2
    assert f"{UPDATES + 2} updates made" in (out / "report.md").read_text()


# --- Interruptions and failures


def test_a_failure_keeps_what_was_learnt(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    append, out = RunFolder.append, tmp_path / "run"

    def append_and_fail(folder: RunFolder, record: dict[str, object]) -> None:
        append(folder, record)
        if record["update"] == 4:
            raise BatchError("the loss is nan")

    given = ("train", trained.parent / "model.toml", "--out", out, "--quiet")
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", append_and_fail)
        assert run(*given) == 1
    shown = capsys.readouterr().err
    assert "the loss is nan" in shown
    assert f"the first 4 updates are kept; go on with: gncompile resume {out}" in shown
    assert run(*given) == 1
    assert "or delete it" in capsys.readouterr().err
    assert run("resume", out, "--quiet") == 0
    assert losses(out) == losses(trained)


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), BatchError("no")])
def test_a_failure_before_anything_was_learnt_leaves_no_folder(
    trained: Path, tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(TrainingRun, "_fit", fails)
    assert run("train", trained.parent / "model.toml", "--out", tmp_path / "run", "--quiet") == 1
    assert not list(tmp_path.glob("run"))


def test_sigterm_stops_as_ctrl_c_does(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    append, out = RunFolder.append, tmp_path / "run"

    def append_and_stop(folder: RunFolder, record: dict[str, object]) -> None:
        append(folder, record)
        if record["update"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RunFolder, "append", append_and_stop)
    before = signal.getsignal(signal.SIGTERM)
    assert run("train", trained.parent / "model.toml", "--out", out, "--quiet") == 130
    assert f"gncompile resume {out}" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(losses(out)) == 3


def test_a_comparison_that_fails_leaves_no_folder(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "model.toml", tmp_path / "out"
    shutil.copy(trained.parent / "images.npz", tmp_path)
    file.write_text(MODEL + '[training.options]\ninverse = "newton_schulz"\n')  # for triton only
    given = ("compare", file, "--out", out, "--optimisers", "kfra", "--updates", 1, "--no-search")
    assert run(*given) == 1
    assert "no optimiser could be started" in capsys.readouterr().err
    assert not out.exists()
    file.write_text(MODEL)
    assert run(*given) == 0


# --- Files of predictions


def test_files_of_predictions(trained: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    data = trained.parent / "images.npz"
    for suffix in ("csv", "npz", "parquet"):
        assert run("predict", trained, data, "-o", tmp_path / f"p.{suffix}") == 0
    expected = np.stack([*gncompile.load(trained).predict(data).values()], axis=1)
    with (tmp_path / "p.csv").open() as file:
        written = np.array([[float(cell) for cell in row.values()] for row in csv.DictReader(file)])
    assert np.array_equal(written, expected)
    assert np.array_equal(np.load(tmp_path / "p.npz")["x"], expected)
    table = parquet.read_table(tmp_path / "p.parquet")
    assert np.array_equal(np.stack([column.to_numpy() for column in table.columns], 1), expected)


def test_predictions_replace_nothing_that_is_read(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, more, link = trained.parent / "images.npz", tmp_path / "more.npz", tmp_path / "link.npz"
    shutil.copy(data, more)
    link.symlink_to(trained / "weights.safetensors")
    before = {path: path.read_bytes() for path in (data, trained / "weights.safetensors")}
    for out, found in (
        (data, "would be replaced"),
        (link, "would be replaced"),
        (tmp_path / "p.txt", "ends in .csv, .parquet, .npz"),
        (tmp_path, "ends in"),
    ):
        for given in (data, more):  # of other rows, too: the run is trained on the first
            assert run("predict", trained, given, "-o", out) == 1
            assert found in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_evaluate(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("evaluate", trained, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    loaded = gncompile.load(trained)
    x = loaded.data().validation_x
    with torch.no_grad():
        z = loaded.module(x)
        loss = nn.functional.binary_cross_entropy_with_logits(z, x, reduction="sum") / len(x)
    assert found == {"loss": pytest.approx(float(loss), rel=1e-12)}
    np.savez(tmp_path / "x.npz", x=x.numpy())
    assert run("evaluate", trained, tmp_path / "x.npz", "--metrics", "mae,rmse", "--json") == 0
    more = json.loads(capsys.readouterr().out)
    assert more["loss"] == found["loss"]
    assert more["mae"] == pytest.approx(float((z.sigmoid() - x).abs().mean()))
    assert run("evaluate", trained, "--metrics", "accuracies") == 1
