"""Run folders: what is written, refused and forgotten."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gncompile.app.run_folder import RunFolder, free_folder
from gncompile.app.run_pictures import draw_loss, draw_reconstructions
from gncompile.data.curves import curves
from gncompile.errors import CheckpointError, GncompileError


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


def test_one_process_holds_a_folder(folder: RunFolder) -> None:
    other = RunFolder.open(folder.path)
    with pytest.raises(GncompileError, match="in use by another process"):
        other.hold()
    folder.release()
    other.hold()
    other.release()


def create(path: Path, model: Path, barrier: Any, made: Any) -> None:
    barrier.wait()
    try:
        RunFolder.create(path, model, {"updates": 1})
    except GncompileError:
        made.put(0)
    else:
        made.put(1)


def test_one_of_many_processes_gets_a_new_folder(tmp_path: Path) -> None:
    model = tmp_path / "my.toml"
    model.write_text("# a model")
    context = multiprocessing.get_context("fork")
    for number in range(5):
        barrier, made = context.Barrier(4), context.Queue()
        arguments = (tmp_path / f"run{number}", model, barrier, made)
        workers = [context.Process(target=create, args=arguments) for _ in range(4)]
        for worker in workers:
            worker.start()
        assert sum(made.get() for _ in workers) == 1
        for worker in workers:
            worker.join()


def test_two_runs_of_one_name(tmp_path: Path) -> None:
    model = tmp_path / "my.toml"
    model.write_text("# a model")
    made = [RunFolder.create_in(tmp_path / "runs", "a/b", model, {}).path.name for _ in range(3)]
    assert made == ["a-b", "a-b-2", "a-b-3"]


def test_a_creation_that_died_leaves_a_free_folder(tmp_path: Path) -> None:
    model = tmp_path / "my.toml"
    model.write_text("# a model")
    path = tmp_path / "run"
    path.mkdir()
    for name in (".lock", "model.toml", ".checkpoint-0a1b2c3d4e5f.safetensors"):
        (path / name).write_text("half")
    made = RunFolder.create(path, model, {})
    assert made.model_file.read_text() == "# a model"
    assert not list(path.glob(".checkpoint-*"))


def test_a_folder_with_somebodys_model_file_is_no_died_creation(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    mine = tmp_path / "run" / "model.toml"
    mine.write_text("# mine")
    with pytest.raises(GncompileError, match="in use"):
        RunFolder.create(tmp_path / "run", mine, {})
    assert [each.name for each in mine.parent.iterdir()] == ["model.toml"]


def test_a_creation_that_fails_leaves_nothing(tmp_path: Path) -> None:
    model = tmp_path / "my.toml"
    model.write_text("# a model")

    def fill(folder: RunFolder) -> None:
        folder.checkpoint.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        RunFolder.create(tmp_path / "run", model, {}, fill=fill)
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_through_links_in_a_folder(folder: RunFolder, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("MINE")
    folder.release()
    for name in (".lock", "history.jsonl", "report.md", "checkpoint.safetensors"):
        (folder.path / name).unlink(missing_ok=True)
        (folder.path / name).symlink_to(victim)
    folder.hold()
    folder.write_report("text")
    with pytest.raises(OSError, match="symbolic link"):
        folder.append({"update": 1})
    assert victim.read_text() == "MINE"
    (folder.path / "history.jsonl").unlink()
    os.link(victim, folder.path / "history.jsonl")
    victim.write_text("")
    folder.rewind(3)
    folder.append({"update": 1})
    assert victim.read_text() == ""


@pytest.mark.parametrize(
    "line",
    [
        *(
            "[1]",
            '"text"',
            '{"loss": 1}',
            '{"update": "1"}',
            '{"update": 1, "loss": []}',
            "[" * 10**5,
        ),
        *('{"update": 1, "loss": 1e400}', '{"update": -1}', '{"update": 1, "loss": NaN}'),
        *('{"update": 1, "loss": 1%s}' % ("0" * 400), '{"update": 1%s}' % ("0" * 400)),
    ],
)
def test_a_history_that_is_none(folder: RunFolder, line: str) -> None:
    folder.append({"update": 1})
    with (folder.path / "history.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(CheckpointError, match=r"damaged\n.*line 2"):
        folder.history()


@pytest.mark.parametrize("text", ["[]", '{"settings": 3}', "[" * 10**5, "\xff", "x" * (1 << 21)])
def test_a_run_record_that_is_none(folder: RunFolder, text: str) -> None:
    (folder.path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match="damaged"):
        _ = folder.settings


def test_losses_too_large_to_draw(folder: RunFolder) -> None:
    pytest.importorskip("matplotlib")
    for update in range(1, 5):
        folder.append({"update": update, "loss": (-1) ** update * 1.7e308 if update > 2 else 1.0})
    assert draw_loss(folder.history(), folder.path / "loss.png") == folder.path / "loss.png"


def test_loss_curve(folder: RunFolder) -> None:
    image = pytest.importorskip("matplotlib.image")
    assert draw_loss(folder.history(), folder.path / "loss.png") is None
    for update in range(1, 20):
        validation = 500 / update if update % 5 == 0 else None
        folder.append({"update": update, "loss": 400 / update, "validation_loss": validation})
    path = draw_loss(folder.history(), folder.path / "loss.png")
    assert path == folder.path / "loss.png"
    pixels = image.imread(path)
    assert pixels.shape[:2] == (480, 768)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10


def test_reconstructions_show_both_rows(folder: RunFolder) -> None:
    image = pytest.importorskip("matplotlib.image")
    originals = torch.from_numpy(curves(6))
    path = draw_reconstructions(
        originals, torch.ones_like(originals), (28, 28), folder.path / "reconstructions.png"
    )
    assert path is not None
    grey = image.imread(path)[..., 0]
    upper, lower = np.split(grey[:, grey.shape[1] // 2 :], 2)
    assert upper.mean() < 0.5 < lower.mean()  # dark curves above, white squares below


def test_no_pictures_without_matplotlib(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder.append({"update": 1, "loss": 1.0})
    assert draw_loss(folder.history(), folder.path / "loss.png") is None


def test_free_folders(tmp_path: Path) -> None:
    assert free_folder(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    assert free_folder(tmp_path, "a") == tmp_path / "a-2"
    assert free_folder(tmp_path, "../b c") == tmp_path / "-b-c"
