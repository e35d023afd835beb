"""The sensitivity of the convergence benchmark: trainings with one option changed at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.convergence import sensitivity
from benchmarks.convergence.__main__ import main
from benchmarks.convergence.problems import PROBLEMS
from benchmarks.convergence.sensitivity import DEFAULTS, Effect
from gncompile.app.comparison.contest import Contest
from gncompile.app.comparison.optimisers import OPTIMISERS
from gncompile.app.comparison.running import Budget, run
from gncompile.app.comparison.store import Point, Run, Status
from gncompile.base.settings import Settings
from gncompile.errors import CompileError

SIX = Budget(6, "u")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets the number of threads; the rest of the suite keeps its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("setting", sensitivity.settings()[1:], ids=str)
def test_every_change_is_one_option_with_another_value(setting: dict[str, float]) -> None:
    changed = Settings.from_options(**sensitivity.options(setting))
    (name,) = setting
    assert getattr(changed, name) != getattr(Settings(), name)
    assert changed == replace(Settings(), **{name: getattr(changed, name)})
    default = getattr(Settings(), name)
    assert default is None or isinstance(getattr(changed, name), type(default) | None)


def test_each_setting_is_trained_with_the_option_and_kept(tmp_path: Path) -> None:
    said: list[str] = []
    contest = Contest(tmp_path, SIX, seeds=(0, 1), points=2, report=said.append, machine={})
    task = PROBLEMS["stiff"].task(samples=24)
    found = list(sensitivity.measure(task, contest, "kfac", ("momentum",)))
    assert [each.setting for each in found] == [DEFAULTS, {"momentum": 0}]
    assert found[0].ratios == (1, 1)
    alone = replace(task, options={"momentum": False})
    for seed, loss in zip((0, 1), found[1].losses, strict=True):
        assert loss == run(alone, OPTIMISERS["kfac"], DEFAULTS, seed, SIX).final
    assert 1 not in found[1].ratios
    assert len(said) == 4
    assert list(sensitivity.measure(task, contest, "kfac", ("momentum",))) == found
    assert len(said) == 4  # all runs were kept


def curve(*points: tuple[float, float], status: Status = "done") -> Run:
    each = tuple(Point(round(10 * s), s, math.exp(loss), 0.0) for s, loss in points)
    return Run("task", "kfra", {}, 0, "6s", status, points=each)


def test_an_effect_is_the_time_to_a_loss_of_the_defaults() -> None:
    usual = curve((0, 3), (3, 1), (6, -2))  # the loss at 4 s is wanted, whose logarithm is 0
    for run_, seconds in (
        (usual, 4),
        (curve((0, 3), (2, 1), (4, -1), (6, -1)), 3),
        (curve((0, 3), (1, -1), (6, 5)), 0.75),  # first reached; what comes later does not count
        (curve((0, 3), (6, 0.1)), math.inf),
        (curve((0, 3), (1, -1), (2, 5), status="diverged"), math.inf),
    ):
        assert sensitivity.longer(run_, usual, "s") == pytest.approx(seconds / 4)
    twice = curve((0, 3), (6, -2))
    assert sensitivity.longer(twice, usual, "u") == pytest.approx(3.6 / 4)


def test_defaults_that_cannot_be_trained_are_named(tmp_path: Path) -> None:
    contest = Contest(tmp_path, SIX, seeds=(0,), report=lambda line: None, machine={})
    refused = replace(PROBLEMS["stiff"].task(samples=24), options={"step_cap": -1.0})
    with pytest.raises(CompileError, match=r"the defaults failed at seed 0: option step_cap = -1"):
        list(sensitivity.measure(refused, contest, "kfra", ("momentum",)))


def test_ratios_are_tabled_by_setting_and_task(tmp_path: Path) -> None:
    found = [
        Effect("a", DEFAULTS, (1.0, 1.0), (3.0, 5.0)),
        Effect("a", {"damping": 1.0}, (2.0, 4.5), (6.0, 22.5)),
        Effect("b", DEFAULTS, (1.0, 1.0), (0.1, 0.1)),
        Effect("b", {"damping": 1.0}, (1.0, 1 / 3), (0.1, 1 / 30)),
        Effect("b", {"momentum": 0.0}, (1.0, math.inf), (0.1, math.inf)),
    ]
    header, _, *rows = [line.split() for line in sensitivity.text(found).splitlines()]
    assert header == ["setting", "a", "b", "all"]
    assert rows == [
        ["defaults", "4", "0.1"],
        ["damping=1", "3.00", "0.58", "1.32"],  # √(2 · 4.5), √⅓, and the root of their product
        ["momentum=0", "never", "never"],
    ]
    sensitivity.write(found, tmp_path)
    records = json.loads((tmp_path / "sensitivity.json").read_text())
    assert records[-1]["losses"] == [0.1, None]
    assert (tmp_path / "sensitivity.png").exists()


def test_the_command_varies_the_named_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["sensitivity", "--problems", "stiff", "--samples", "24", "--budget", "2u"]
    given += [
        "--seeds",
        "0",
        "--output",
        str(tmp_path),
        "--runs",
        str(tmp_path / "runs"),
        "--options",
    ]
    assert main([*given, "step_cap", "average"]) == 0
    assert "step_cap=1" in capsys.readouterr().out
    assert "average=0" in (tmp_path / "sensitivity.md").read_text()
    assert main([*given, "average", "--optimisers", "kfra", "kfac"]) == 1
    assert main([*given, "average", "--optimisers", "adam"]) == 1
    said = capsys.readouterr().err
    assert "sensitivity of kfra, kfac" in said
    assert "sensitivity of adam" in said
    assert main([*given, "avrage"]) == 1
    assert "Did you mean 'average'?" in capsys.readouterr().err
