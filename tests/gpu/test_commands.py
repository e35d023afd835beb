"""``gncompile … --device cuda``: what is trained, resumed and predicted there is what the CPU computes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import losses, run
from launches import torchrun

import gncompile
from gncompile.app.run_folder import RunFolder

# All samples are one batch and nothing is averaged: then no step depends on a random number, of which
# devices have others.
TABLE = """
[data]
name = "rows.csv"
targets = ["y"]
weights = "w"
validation = 20
[network]
hidden = [20, 10]
[training]
dtype = "float64"
updates = 6
output_bias = "mean"
metrics = ["rmse"]
[training.options]
average = 0
"""
PDE = """
[pde]
box = { x = [0, 1], y = [0, 1] }
outputs = ["u"]
reference = "sin(pi*x)*sin(pi*y)"
[pde.term.interior]
equation = "u__x__x + u__y__y + 2*pi**2*sin(pi*x)*sin(pi*y)"
points = 200
[pde.term.boundary]
equation = "u"
points = 80
faces = true
[network]
hidden = [12]
[training]
updates = 5
[training.options]
damping_tries = 1  # what a step that runs ahead of the host can do
"""
TOLERANCE = 1e-8
"""Float64 rounding, passed on by a few steps whose damped factors have a condition of 1e4 at most."""


def written(folder: Path, text: str = TABLE) -> Path:
    """A table with numbers, categories and weights, and a model file."""
    random = np.random.default_rng(0)
    rows = ["a,b,kind,y,w"]
    for i in range(200):
        a, b = random.uniform(-1, 1, 2)
        rows.append(f"{a},{100 + 7 * b},{'abc'[i % 3]},{np.sin(3 * a) + b * (i % 3)},{1 + i % 2}")
    (folder / "rows.csv").write_text("\n".join(rows) + "\n")
    path = folder / "model.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_a_run_there_is_that_of_the_cpu(
    backend: str, tmp_path: Path, cuda: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    path, here, there = written(tmp_path), tmp_path / "here", tmp_path / "there"
    assert run("train", path, "--quiet", "--out", here) == 0
    path.write_text(f'{TABLE}backend = "{backend}"\n')
    assert run("train", path, "--quiet", "--out", there, "--device", "cuda") == 0
    assert losses(there) == pytest.approx(losses(here), rel=TOLERANCE)
    assert {f.name for f in here.iterdir()} == {f.name for f in there.iterdir()}
    assert RunFolder(there).settings["device"] == "cuda"

    rows, predicted = tmp_path / "rows.csv", {}
    for device in ("cpu", "cuda"):  # the module is torch's, whatever the backend was
        out = tmp_path / f"{device}.csv"
        assert run("predict", there, rows, "--out", out, "--device", device) == 0
        predicted[device] = np.genfromtxt(out, skip_header=1)
        capsys.readouterr()
        assert run("evaluate", there, rows, "--json", "--device", device) == 0
        loss = json.loads(capsys.readouterr().out)["loss"]
        assert loss == pytest.approx(gncompile.load(here).evaluate(rows)["loss"], rel=TOLERANCE)
    np.testing.assert_allclose(predicted["cuda"], predicted["cpu"], rtol=1e-10)


@pytest.mark.parametrize("method", ["kfra", "adam"])
def test_a_run_goes_on_from_device_to_device(
    method: str, tmp_path: Path, cuda: torch.device
) -> None:
    path, whole, parts = written(tmp_path), tmp_path / "whole", tmp_path / "parts"
    options = "--method", method, "--quiet"
    assert run("train", path, *options, "--out", whole) == 0
    assert run("train", path, *options, "--updates", 2, "--out", parts, "--device", "cuda") == 0
    assert run("resume", parts, "--quiet", "--updates", 2, "--device", "cpu") == 0
    assert run("resume", parts, "--quiet", "--updates", 2, "--device", "cuda:0") == 0
    assert losses(parts) == pytest.approx(losses(whole), rel=TOLERANCE)


def test_equations_are_solved_there(tmp_path: Path, cuda: torch.device) -> None:
    path, here, there = written(tmp_path, PDE), tmp_path / "here", tmp_path / "there"
    assert run("train", path, "--quiet", "--out", here) == 0
    assert run("train", path, "--quiet", "--out", there, "--device", "cuda") == 0
    # The damped matrix has a condition of up to 1e10, which leaves a direction six digits.
    assert losses(there) == pytest.approx(losses(here), rel=1e-5)
    assert (there / "solution.png").exists()
    told = gncompile.load(there, device="cuda").evaluate()
    assert told == pytest.approx(gncompile.load(there).evaluate(), rel=TOLERANCE)


@pytest.mark.parametrize("command", ["check", "explain", "tune"])
def test_commands_that_compile_do_it_there(
    command: str, tmp_path: Path, cuda: torch.device
) -> None:
    path = written(tmp_path, f'{TABLE}backend = "triton"\n')
    more = ("--budget", "5s", "--quiet") if command == "tune" else ()
    assert run(command, path, "--device", "cuda", *more) == 0


def test_more_processes_than_gpus_are_refused(tmp_path: Path, cuda: torch.device) -> None:
    """By those that have none, before anything is written."""
    size = torch.cuda.device_count() + 1
    path, out = written(tmp_path), tmp_path / "run"
    done = torchrun(
        size, "-m", "gncompile", "train", path, "--quiet", "--out", out, "--device", "cuda"
    )
    assert done.returncode != 0
    assert (
        f"process {size - 1} of the {size} on this machine has no GPU" in done.stdout + done.stderr
    )
    assert not out.exists()


def test_processes_with_a_gpu_each(tmp_path: Path, cuda: torch.device) -> None:
    size = min(torch.cuda.device_count(), 4)
    if size < 2:
        pytest.skip("one GPU")
    path, here, there = written(tmp_path), tmp_path / "here", tmp_path / "there"
    assert run("train", path, "--quiet", "--out", here) == 0
    done = torchrun(
        size, "-m", "gncompile", "train", path, "--quiet", "--out", there, "--device", "cuda"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert losses(there) == pytest.approx(losses(here), rel=TOLERANCE)
