"""Run folders: what is written, refused and forgotten."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gncompile.curves import curves
from gncompile.errors import CheckpointError, GncompileError
from gncompile.run_folder import RunFolder, free_folder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    model = tmp_path / "my.toml"
    model.write_text("# a model")
    return RunFolder.create(tmp_path / "run", model, {"updates": 5})


def test_create_and_open(folder: RunFolder, tmp_path: Path) -> None:
    again = RunFolder.open(folder.path)
    assert again.settings == {"base": str(tmp_path), "updates": 5}
    assert again.model_file.read_text() == "# a model"
    record = json.loads((folder.path / "run.json").read_text())
    assert record["environment"]["torch"] == torch.__version__


def test_a_folder_in_use_is_refused(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(GncompileError, match="in use") as caught:
        RunFolder.create(folder.path, tmp_path / "my.toml", {})
    assert f"gncompile resume {folder.path}" in str(caught.value)
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", tmp_path / "my.toml", {})


def test_other_folders_are_no_runs(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"run\.json is missing"):
        RunFolder.open(tmp_path)
    (folder.path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        _ = RunFolder.open(folder.path).settings


def test_history_survives_crashes_and_rewinds(folder: RunFolder) -> None:
    for update in range(1, 6):
        folder.append({"update": update, "loss": torch.tensor(1 / update), "ratio": math.inf})
    assert folder.history()[1] == {"update": 2, "loss": 0.5, "ratio": None}
    with (folder.path / "history.jsonl").open("a") as file:
        file.write('{"update": 6, "lo')  # killed here
    assert len(folder.history()) == 5
    folder.rewind(3)
    folder.append({"update": 4})
    assert [record["update"] for record in folder.history()] == [1, 2, 3, 4]


def test_loss_curve(folder: RunFolder) -> None:
    image = pytest.importorskip("matplotlib.image")
    assert folder.plot_loss() is None
    for update in range(1, 20):
        validation = 500 / update if update % 5 == 0 else None
        folder.append({"update": update, "loss": 400 / update, "validation_loss": validation})
    path = folder.plot_loss()
    assert path == folder.path / "loss.png"
    pixels = image.imread(path)
    assert pixels.shape[:2] == (480, 768)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10


def test_reconstructions_show_both_rows(folder: RunFolder) -> None:
    image = pytest.importorskip("matplotlib.image")
    originals = torch.from_numpy(curves(6))
    path = folder.plot_reconstructions(originals, torch.ones_like(originals), (28, 28))
    assert path is not None
    grey = image.imread(path)[..., 0]
    upper, lower = np.split(grey[:, grey.shape[1] // 2 :], 2)
    assert upper.mean() < 0.5 < lower.mean()  # dark curves above, white squares below


def test_no_pictures_without_matplotlib(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder.append({"update": 1, "loss": 1.0})
    assert folder.plot_loss() is None


def test_free_folders(tmp_path: Path) -> None:
    assert free_folder(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert free_folder(tmp_path, "a") == tmp_path / "a-2"
    assert free_folder(tmp_path, "../b c") == tmp_path / "-b-c"
