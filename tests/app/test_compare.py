"""Comparing optimisers: runs under a budget, resumption, and `gncompile compare`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import HEAD, write_model
from torch import nn

from gncompile.app.cli import main
from gncompile.app.comparison import contest as contest_module
from gncompile.app.comparison.contest import Contest, neighbours
from gncompile.app.comparison.optimisers import OPTIMISERS, Optimiser, Pair, named, rates
from gncompile.app.comparison.running import POINTS, Budget, run
from gncompile.app.comparison.standings import standings, text
from gncompile.app.comparison.store import Run, read_all
from gncompile.app.comparison.task import Task
from gncompile.data import DataSplit
from gncompile.errors import CompileError, ModelFileError

TEN = Budget(10, "u")


def small_task(name: str = "small", batch_size: int = 20) -> Task:
    """A regression on 60 samples in float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=generator, dtype=torch.float64)
    y = torch.sin(x[:, :2]) + x[:, 2:]

    def build(seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    data = DataSplit(x[:60], y[:60], x[60:], y[60:], (4,))
    return Task(name, build, nn.MSELoss(), nn.functional.mse_loss, data, batch_size)


def quiet(folder: Path, **options: object) -> Contest:
    return Contest(folder, TEN, report=lambda line: None, machine={}, **options)  # type: ignore[arg-type]


# --- One run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount", "unit"), [("60s", 60, "s"), ("1.5m", 90, "s"), ("100u", 100, "u")]
)
def test_budgets_are_seconds_or_updates(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount, unit)  # type: ignore[arg-type]
    assert Budget.parse(str(Budget.parse(text))) == Budget.parse(text)


@pytest.mark.parametrize("text", ["60", "-1s", "0s", "1.5u", "s", "1h"])
def test_anything_else_is_no_budget(text: str) -> None:
    with pytest.raises(CompileError, match="is no budget"):
        Budget.parse(text)


@pytest.mark.parametrize("name", ["kfra", "kfac", "auto", "adam"])
def test_two_runs_of_one_seed_give_bitwise_the_same_losses(name: str) -> None:
    first, second = (
        run(small_task(), OPTIMISERS[name], OPTIMISERS[name].grid[0], 3, TEN) for _ in range(2)
    )
    losses = [[(p.updates, p.train, p.validation) for p in each.points] for each in (first, second)]
    assert losses[0] == losses[1]
    assert [p.updates for p in first.points] == list(range(11))
    other = run(small_task(), OPTIMISERS[name], OPTIMISERS[name].grid[0], 4, TEN)
    assert other.final != first.final


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_run_is_torchs_own_training_loop(name: str) -> None:
    task = small_task(batch_size=60)  # the full batch, so that the order of samples plays no part
    made = run(task, OPTIMISERS[name], {"lr": 1e-2, "schedule": "cosine"}, 0, TEN)
    model = task.build(0)
    optimiser: torch.optim.Optimizer
    if name == "adam":
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    else:
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=10)
    for _ in range(10):
        optimiser.zero_grad()
        nn.functional.mse_loss(model(task.data.train_x), task.data.train_y).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        loss = float(nn.functional.mse_loss(model(task.data.train_x), task.data.train_y))
    # torch's schedule is a recursion: its rates, and with them the loss, differ by a few roundings.
    assert made.final == pytest.approx(loss, rel=1e-12)


def test_the_l2_term_of_a_model_reaches_the_first_order_methods() -> None:
    task = replace(small_task(batch_size=60), l2=lambda name: 0.5 if name == "0.weight" else 0.0)
    setting = {"lr": 0.1, "schedule": "constant"}

    def keep(task: Task) -> dict[str, torch.Tensor]:
        model = task.build(0)
        steps = OPTIMISERS["sgd"].start(task, model, 0, setting)
        steps.step(task.data.train_x, task.data.train_y, 0.0)
        return {name: p.detach().clone() for name, p in model.named_parameters()}

    moved, plain = keep(task), keep(small_task(batch_size=60))
    # SGD's first step with Nesterov momentum 0.9 is 1.9 lr times the gradient, to which L2 adds η θ.
    weight = task.build(0).get_parameter("0.weight").detach()
    torch.testing.assert_close(moved["0.weight"] - plain["0.weight"], -0.1 * 1.9 * 0.5 * weight)
    assert torch.equal(moved["2.weight"], plain["2.weight"])


def test_a_budget_of_seconds_counts_the_training_only() -> None:
    made = run(small_task(), OPTIMISERS["adam"], rates(1e-3)[0], 0, Budget(0.1, "s"))
    seconds = [point.seconds for point in made.points]
    assert seconds[0] == 0
    assert seconds[-1] >= 0.1 > seconds[-2]
    assert seconds == sorted(seconds)
    assert len(seconds) <= POINTS + 1


def test_lbfgs_counts_iterations_and_needs_the_full_batch() -> None:
    made = run(small_task(batch_size=60), OPTIMISERS["lbfgs"], rates(1.0)[0], 0, TEN)
    assert made.points[-1].updates == 10
    assert made.final < 0.5 * made.points[0].train
    assert "full batch" in OPTIMISERS["lbfgs"].refusal(small_task())


def test_muon_trains_matrices_and_biases() -> None:
    task = small_task()
    model = task.build(0)
    before = [p.detach().clone() for p in model.parameters()]
    steps = OPTIMISERS["muon"].start(task, model, 0, rates(1e-3)[0])
    steps.step(task.data.train_x, task.data.train_y, 0.0)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_run_that_diverges_says_so_and_ends() -> None:
    setting = {"lr": 1e6, "schedule": "constant"}
    made = run(small_task(), OPTIMISERS["sgd"], setting, 0, Budget(1000, "u"))
    assert made.status == "diverged"
    assert made.points[-1].updates < 1000
    assert made.final == math.inf


def test_a_step_that_raises_ends_its_run_only(tmp_path: Path) -> None:
    class Failing:
        def batches(self, train: Iterable[Pair]) -> Iterator[Pair]:
            return itertools.cycle(train)

        def step(self, x: torch.Tensor, y: torch.Tensor, progress: float) -> int:
            if progress >= 0.5:
                torch.linalg.cholesky(-torch.eye(2))
            return 1

        def settle(self, x: torch.Tensor, y: torch.Tensor) -> None:
            pass

    failing = replace(OPTIMISERS["sgd"], name="adamw", start=lambda *given: Failing())
    runs = quiet(tmp_path, seeds=(0,), search=False).hold(
        small_task(), [failing, OPTIMISERS["kfra"]]
    )
    assert [each.status for each in runs] == ["diverged", "done"]
    assert runs[0].points[-1].updates == 5
    assert "adamw: diverged: linalg.cholesky" in text(standings(runs))


def test_what_cannot_be_compiled_is_a_failed_run() -> None:
    task = replace(small_task(), loss=nn.HuberLoss(), objective=nn.functional.huber_loss)
    made = run(task, OPTIMISERS["kfac"], {}, 0, TEN)
    assert made.status == "failed"
    assert "needs a model to sample targets from" in made.note


# --- Contests -------------------------------------------------------------------------------------


def test_an_interrupted_contest_goes_on_without_repeating_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []

    def counted(after: int) -> Callable[..., Run]:
        def wrapped(
            task: Task, optimiser: Optimiser, setting: dict, seed: int, *rest: object
        ) -> Run:
            if len(made) == after:
                raise KeyboardInterrupt
            made.append((optimiser.name, seed))
            return run(task, optimiser, setting, seed, *rest)  # type: ignore[arg-type]

        return wrapped

    contestants = named(["kfra", "sgd"])
    contest = quiet(tmp_path, seeds=(0, 1), search=False)
    monkeypatch.setattr(contest_module, "run", counted(1))
    with pytest.raises(KeyboardInterrupt):
        contest.hold(small_task(), contestants)
    assert made == [("kfra", 0)]
    monkeypatch.setattr(contest_module, "run", counted(-1))
    resumed = contest.hold(small_task(), contestants)
    assert made == [("kfra", 0), ("kfra", 1), ("sgd", 0), ("sgd", 1)]
    assert [(each.optimiser, each.seed) for each in resumed] == made
    again = contest.hold(small_task(), contestants)
    assert len(made) == 4
    assert again == resumed
    assert sorted(map(repr, read_all(tmp_path, "10u"))) == sorted(map(repr, resumed))
    assert read_all(tmp_path, "60s") == []
    replace(contest, clock="cpu").hold(small_task(), contestants[:1])
    assert made[4:] == [("kfra", 0), ("kfra", 1)]


def test_the_grid_is_climbed_at_one_seed_and_its_best_run_at_all(tmp_path: Path) -> None:
    runs = quiet(tmp_path, seeds=(0, 1, 2)).hold(small_task(), named(["sgd"]))
    grid = OPTIMISERS["sgd"].grid
    searched = [each for each in runs if each.seed == 0]
    assert [each.seed for each in runs] == [0] * len(searched) + [1, 2]
    assert searched[0].setting == grid[0]
    best = min(searched, key=lambda each: each.final)
    assert {str(each.setting) for each in runs[len(searched) :]} == {str(best.setting)}
    # Nothing beside the best is untried, and nothing was tried that is not beside another.
    tried = [each.setting for each in searched]
    assert all(each in tried for each in neighbours(best.setting, grid))
    assert all(any(near in tried for near in neighbours(each, grid)) for each in tried)
    assert len(tried) < len(grid)
    (standing,) = standings(runs)
    assert standing.runs[0].setting == best.setting
    assert (len(standing.runs), standing.searched) == (3, len(searched) + 2)


def test_neighbours_differ_in_one_entry_by_one_place() -> None:
    grid = rates(0.1, 0.01, 1.0, schedules=("constant", "cosine"))
    near = [(each["lr"], each["schedule"]) for each in neighbours(grid[0], grid)]
    assert sorted(near) == [(0.01, "constant"), (0.1, "cosine"), (1.0, "constant")]
    assert neighbours({}, ({},)) == []


def test_a_grid_without_a_finite_loss_is_tried_throughout(tmp_path: Path) -> None:
    explosive = replace(OPTIMISERS["sgd"], grid=rates(1e30, 1e20, 1e25, 1e35))
    runs = quiet(tmp_path, seeds=(0, 1)).hold(small_task(), [explosive])
    assert [(each.seed, each.status) for each in runs] == [(0, "diverged")] * 4


def test_a_missing_package_is_a_row(tmp_path: Path) -> None:
    absent = replace(OPTIMISERS["soap"], package="no_such_package")
    (made,) = quiet(tmp_path).hold(small_task(), [absent])
    assert made.status == "not run"
    assert "soap: not run: no_such_package is not installed" in text(standings([made]))
    assert not list(tmp_path.rglob("*.jsonl"))


def test_an_unknown_optimiser_is_named_with_its_neighbour() -> None:
    with pytest.raises(CompileError, match=r"unknown optimiser 'adamm'. Did you mean 'adam'?"):
        named(["kfra", "adamm"])


# --- The command ----------------------------------------------------------------------------------

MODEL = f"""{HEAD}output_bias = "mean"
[training.options]
l2 = 1e-4
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path, MODEL)


def command(*arguments: object) -> int:
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def test_compare_writes_table_plot_and_json(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    given = (
        "compare",
        model,
        "--optimisers",
        "kfra, kfac,adam,kflr",
        "--updates",
        12,
        "--out",
        out,
    )
    assert command(*given, "--seeds", 2, "--no-search") == 0
    printed = capsys.readouterr().out
    assert "sooner: than adam, the best first-order optimiser" in printed
    for name in ("report.md", "points.csv", "standings.json", "small.png", "model.toml"):
        assert (out / name).stat().st_size > 0, name
    by_name = {each["optimiser"]: each for each in json.loads((out / "standings.json").read_text())}
    assert list(by_name) == ["kfra", "kfac", "adam", "kflr"]
    assert by_name["kfra"]["seeds"] == [1, 2]  # the file's own seed first
    assert by_name["kfra"]["loss"] < by_name["adam"]["loss"]
    assert len(list(out.glob("runs/small/*.jsonl"))) == 8

    assert command(*given, "--seeds", 2, "--no-search") == 0  # nothing is left to run
    assert "kfra defaults, seed 1: done" in printed
    assert "kfra defaults, seed 1: done" not in capsys.readouterr().out

    model.write_text(MODEL.replace("1e-4", "1e-3"))
    assert command(*given) == 1
    assert "holds runs of another model file" in capsys.readouterr().err


def test_compare_starts_every_optimiser_from_the_files_loss(model: Path) -> None:
    from gncompile.app.comparison.model_file import task_of
    from gncompile.app.training_run import compile_file, load_data
    from gncompile.frontends.model_file import load_model_file

    file = load_model_file(model)
    task = task_of(file)
    network = task.build(1)
    data = load_data(file)
    trainer = compile_file(file)
    trainer.model.load_state_dict(network.state_dict())
    # Both are float32 sums over 9 pixels and 72 images.
    assert task.losses(network)[0] == pytest.approx(
        trainer.evaluate(data.train_x, data.train_y), rel=1e-5
    )
    assert [task.l2(name) for name, _ in network.named_parameters()] == [1e-4] * 8


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--optimisers", "kfar"), 1, "Did you mean 'kfra'?"),
        (("--updates", 3, "--seconds", 3), 2, "give --updates or --seconds, not both"),
    ],
)
def test_compare_refuses(
    model: Path, options: tuple[object, ...], code: int, said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert command("compare", model, "--out", model.parent / "out", *options) == code
    assert said in capsys.readouterr().err
    assert not (model.parent / "out").exists()


def test_a_folder_belongs_to_one_model_file(model: Path, tmp_path: Path) -> None:
    from gncompile.app.comparison.model_file import compare

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "model.toml").write_text("another")
    with pytest.raises(ModelFileError, match="holds runs of another model file"):
        compare(model, ["adam"], tmp_path / "taken", TEN)
