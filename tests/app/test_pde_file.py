"""Model files with ``[pde]``: checked, trained, resumed, and asked for the solution on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import run as run_of

import gncompile
from gncompile.app.runs import check
from gncompile.app.solved_run import SolvedRun
from gncompile.errors import GncompileError
from gncompile.frontends.pde_file import load_pde_file

TEXT = """
[pde]
box = { x = [0, 1], t = [0, 2] }
reference = "exp(-t)*x"
unknowns = { k = 0.5 }
resample_every = 2

[pde.term.law]
equation = "u__t + k*u"
points = 16

[pde.term.sides]
equation = ["u*(1 - x)", "u - x*exp(-t)"]
points = 8
faces = ["x"]
weight = 2.0

[pde.term.start]
equation = "u - x"
points = 8
at = { t = 0 }
draw = "grid"
loss = "huber"
scale = 0.5

[network]
hidden = [4]

[training]
updates = 4
validate_every = 2
"""


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "decay.toml"
    path.write_text(TEXT)
    return path


def test_a_file_of_equations_is_checked_trained_resumed_and_asked(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_of("check", model_file) == 0
    told = capsys.readouterr().out
    assert "u*(1 - x); u - x*exp(-t) at 8 points, loss mse" in told
    assert "huber, δ = 0.5" in told
    assert "2 → 4 → 1" in told

    run, whole = tmp_path / "run", tmp_path / "whole"
    assert run_of("train", model_file, "--out", run, "--updates", "3", "-q") == 0
    assert run_of("resume", run, "--updates", "1", "-q") == 0
    assert run_of("train", model_file, "--out", whole, "-q") == 0
    losses = [
        [json.loads(line)["loss"] for line in (each / "history.jsonl").read_text().splitlines()]
        for each in (run, whole)
    ]
    assert losses[0] == losses[1]
    last = json.loads((run / "history.jsonl").read_text().splitlines()[1])
    assert {"law", "sides", "start", "k"} <= last.keys()
    report = (run / "report.md").read_text()
    assert "relative L2 error" in report
    assert "sides, mean loss" in report
    assert (run / "derivation" / "index.html").exists()

    points, out = tmp_path / "points.csv", tmp_path / "out.csv"
    points.write_text("t,x\n0.5,0.25\n2,1\n")
    assert run_of("predict", run, points, "-o", out) == 0
    found = np.loadtxt(out, skiprows=1)
    loaded = gncompile.load(run)
    assert isinstance(loaded, SolvedRun)
    at = torch.tensor([[0.25, 0.5], [1, 2]], dtype=torch.float64)
    assert np.array_equal(found, loaded.module(at).detach().numpy()[:, 0])
    assert np.array_equal(found, loaded.predict({"t": [0.5, 2], "x": [0.25, 1]})["u"])
    assert np.array_equal(
        loaded.predict(at, ["u__t + k*u"])["u__t + k*u"], loaded.predict(at, ["law"])["law"]
    )

    told = loaded.evaluate()
    assert told.keys() == {"law", "sides", "start", "k", "relative_l2"}
    assert told["start"] == pytest.approx(loaded.trainer.terms()["start"], rel=1e-9)
    assert told["k"] == loaded.trainer.problem.unknowns["k"]
    assert loaded.trainer.problem.system.losses == (("mse", 1.0), ("mse", 1.0), ("huber", 0.5))
    measured = tmp_path / "measured.csv"
    measured.write_text("t,x,u\n0.5,0.25,1\n2,1,-1\n")
    apart = np.linalg.norm(found - [1, -1]) / 2**0.5
    capsys.readouterr()
    assert run_of("evaluate", run, measured, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"relative_l2": pytest.approx(apart)}
    assert run_of("evaluate", run, "--metrics", "r2") == 1
    assert "the metrics r2 of a run of equations" in capsys.readouterr().err
    loaded.trainer.fit(updates=1, progress=False)
    assert np.array_equal(found, loaded.module(at).detach().numpy()[:, 0])


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("points = 16", "point = 16", "unknown key 'pde.term.law.point'.*'points'"),
        ("points = 16", "points = 0", "pde.term.law.points"),
        ('loss = "huber"', 'loss = "l1"', "pde.term.start.loss"),
        ('loss = "huber"\n', "", "pde.term.start.*give a loss to the scale"),
        ("scale = 0.5", "scale = 1e90", r"loss of the term 'start' is 1e\+90, and(.|\n)*decay.toml"),
        ('at = { t = 0 }', 'at = { t = 0 }\nfaces = true', "give either faces or at"),
        ('"u__t + k*u"', '"u__t + q*u"', r"'q' is unknown(.|\n)*term 'law'(.|\n)*\[pde\] of .*decay.toml"),
        ('"u__t + k*u"', '"u__s + k*u"', "derivative by 's', which is no input"),
        ('"u__t + k*u"', '"__import__(1)"', "function '__import__' is unknown"),
        ("t = [0, 2]", "t = [2, 0]", "'t' of a box lies in"),
        ("at = { t = 0 }", "at = { t = 3 }", "t = 3.0 lies outside the box"),
        ('"exp(-t)*x"', '"exp(-t)*u"', r"'u' is unknown(.|\n)*the reference(.|\n)*are x, t(.|\n)*decay.toml"),
        ('"exp(-t)*x"', '"exp(-t*x"', r"malformed(.|\n)*the reference(.|\n)*\[pde\] of .*decay.toml"),
        ('"exp(-t)*x"', '["x", "t"]', r"reference has another shape(.|\n)*, 1\](.|\n)*, 2\]"),
        ('"exp(-t)*x"', '"log(x - 2)"', r"the reference is \[nan\] at x = .*, t = "),
        ('"exp(-t)*x"', "1", r"'pde.reference'\n  expected: a formula, in quotes, or a .*\n  got:      1\n"),
        ('"exp(-t)*x"', "[]", r"'pde.reference'\n  expected: .* a list of formulas, one an output\n"),
        ('"exp(-t)*x"', '["x", 1]', r"^wrong value for 'pde.reference\[2\]'\n  expected: text, in quotes\n"),
        ('"u__t + k*u"', "1", r"^wrong value for 'pde.term.law.equation'\n  expected: text, in quotes, or a"),
        ('faces = ["x"]', "faces = 1", r"^wrong value for 'pde.term.sides.faces'\n  expected: true or false"),
        ('"exp(-t)*x"', '"x - x"', "the reference is 0 at all points"),
        ("hidden = [4]", "hidden = [900000000, 900000000]", "memory"),
        ("[network]", "[data]\nname = 'x.csv'\n[network]", "unknown key 'data'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_of_equations_are_told(
    model_file: Path, old: str, new: str, text: str
) -> None:
    assert old in TEXT
    model_file.write_text(TEXT.replace(old, new))
    with pytest.raises(GncompileError, match=text):
        check(model_file)


def test_a_wrong_reference_is_told_before_the_training(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model_file.write_text(TEXT.replace('"exp(-t)*x"', '"exp(-s)*x"'))
    assert run_of("train", model_file, "--out", tmp_path / "run", "-q") == 1
    assert "name 's' is unknown" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_file_of_equations_is_explained_and_emitted(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_of("explain", model_file) == 0
    told = capsys.readouterr().out
    assert "k*u + u__t" in told  # the terms
    assert "h1__t" in told or "__t" in told
    assert run_of("emit", model_file, "-o", tmp_path / "source") == 0
    assert [*(tmp_path / "source").glob("*.py")]


def test_commands_on_data_say_what_the_file_is(
    model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_of("verify", model_file) != 0
    assert "[pde], equations in place of data" in capsys.readouterr().err


def test_the_example_is_read() -> None:
    file = load_pde_file(Path(__file__).parents[2] / "examples" / "poisson_2d.toml")
    assert file.pde.term["boundary"].faces is True
