"""One session as a user has it: from a table to predictions, with the same numbers everywhere."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import gncompile
from gncompile.app.cli import main
from gncompile.app.run_folder import RunFolder
from gncompile.app.training_run import TrainingRun

pytest.importorskip("sklearn")
CITIES = ["oslo", "paris", "rome"]
CLOSE = 2e-5
"""Float32 sums in other orders, and seven digits in the file of predictions."""


class Network(nn.Module):
    """The network of the session as its user would write it."""

    input_mean: Tensor
    input_scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.zeros(2))
        self.register_buffer("input_scale", torch.ones(2))
        self.embeddings = nn.ModuleDict({"city": nn.Embedding(3, 2)})
        self.layer1, self.layer2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, city: Tensor) -> Tensor:
        numbers = (x - self.input_mean) / self.input_scale
        hidden = torch.cat([numbers, self.embeddings["city"](city)], dim=1)
        return self.layer2(torch.tanh(self.layer1(hidden)))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """The exit code of ``gncompile ARGUMENTS``, and what it printed."""
    capsys.readouterr()
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().out


def write_table(path: Path) -> None:
    draw = np.random.default_rng(0)
    age, city = draw.integers(20, 80, 200), draw.choice(CITIES, 200)
    income = draw.normal(5e4, 2e4, 200)
    wealth = age + income / 1e3 + 20 * (city == "rome") + draw.normal(0, 8, 200)
    kind = np.where(wealth > np.median(wealth), "rich", "poor")
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["age", "income", "city", "kind"])
        rows.writerows(zip(age, income.round(2), city, kind, strict=True))


def test_a_session(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "people.csv")
    assert run(capsys, "init", "people.csv")[0] == 0
    file = tmp_path / "people.toml"
    text = file.read_text()
    for old, new in (("[64, 64]", "[8]"), ("early_stop = 20", "early_stop = 4")):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text.replace("# metrics", "metrics").replace("# log", "log"))
    code, shown = run(capsys, "check", "people.toml")
    assert code == 0
    assert "poor, rich" in shown

    append = RunFolder.append

    def append_and_interrupt(folder: RunFolder, record: dict[str, object]) -> None:
        append(folder, record)
        if record["update"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", append_and_interrupt)
        code, shown = run(capsys, "train", "people.toml", "--out", "run", "--quiet")
    assert code == 130
    assert "stopped after 3 updates; go on with: gncompile resume run" in shown
    assert run(capsys, "resume", "run", "--quiet")[0] == 0

    history = RunFolder("run").history()
    assert [record["update"] for record in history] == list(range(1, len(history) + 1))
    best = min(history, key=lambda record: record["validation_loss"])
    assert len(history) == best["update"] + 4
    report = Path("run/report.md").read_text()
    assert "no better validation loss in 4 validations" in report

    # The validation data: the best of the history, the report, the command.
    code, shown = run(capsys, "evaluate", "run", "--json")
    held = json.loads(shown)
    for name, recorded in (("loss", "validation_loss"), ("accuracy", "accuracy")):
        (reported,) = re.findall(rf"{name}, 20 validation samples +(\S+)", report)
        assert float(reported) == pytest.approx(held[name], rel=1e-5)
        assert best[recorded] == pytest.approx(held[name], rel=CLOSE)

    # All rows: the command, the file of predictions, a plain module with the weights, the trainer.
    whole = json.loads(run(capsys, "evaluate", "run", "people.csv", "--json")[1])
    assert run(capsys, "predict", "run", "people.csv", "-o", "predictions.csv")[0] == 0
    with open("people.csv") as given, open("predictions.csv") as written:
        rows, predictions = [*csv.DictReader(given)], [*csv.DictReader(written)]
    assert len(rows) == len(predictions) == 200
    pairs = [*zip(rows, predictions, strict=True)]
    chances = [float(found[f"probability_{row['kind']}"]) for row, found in pairs]
    assert -np.mean(np.log(chances)) == pytest.approx(whole["loss"], rel=CLOSE)
    right = [row["kind"] == found["kind"] for row, found in pairs]
    assert np.mean(right) == pytest.approx(whole["accuracy"])
    assert whole["accuracy"] > 0.8

    network = Network()
    network.load_state_dict(load_file("run/weights.safetensors"))
    x = torch.tensor([[float(row["age"]), float(row["income"])] for row in rows])
    city = torch.tensor([CITIES.index(row["city"]) for row in rows])
    y = torch.tensor([["poor", "rich"].index(row["kind"]) for row in rows])
    with torch.no_grad():
        outputs = network(x, city)
    assert float(nn.functional.cross_entropy(outputs, y)) == pytest.approx(whole["loss"], rel=CLOSE)
    loaded = gncompile.load("run")
    torch.testing.assert_close(loaded.module(x, city[:, None]), outputs, rtol=CLOSE, atol=CLOSE)
    loss = loaded.trainer.evaluate((x, city[:, None]), y)
    assert loss == pytest.approx(whole["loss"], rel=CLOSE)


def test_a_stop_on_the_last_of_the_updates_asked_for_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No validation is better by 1e9 than the first: of three in vain the last is that of update 4."""
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "people.csv")
    assert run(capsys, "init", "people.csv")[0] == 0
    text = (tmp_path / "people.toml").read_text().replace("[64, 64]", "[4]")
    changed = text.replace("early_stop = 20", "early_stop = { patience = 3, min_delta = 1e9 }")
    assert changed != text
    (tmp_path / "people.toml").write_text(changed)
    append = RunFolder.append

    def append_and_interrupt(folder: RunFolder, record: dict[str, object]) -> None:
        append(folder, record)
        if record["update"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", append_and_interrupt)
        assert run(capsys, "train", "people.toml", "--out", "run", "--quiet")[0] == 130
    written: list[TrainingRun] = []
    # what takes most of the time
    monkeypatch.setattr(TrainingRun, "_write_results", lambda self: written.append(self))
    TrainingRun.resume(Path("run"), updates=2, progress=False).train()
    assert len(RunFolder("run").history()) == 4
    assert written
    assert RunFolder("run").settings["ended"] == "no better validation loss in 3 validations"
