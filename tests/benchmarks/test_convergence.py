"""The convergence benchmark at tiny budgets: its problems, its command, and the alignment."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.convergence import alignment, faces
from benchmarks.convergence.__main__ import main
from benchmarks.convergence.networks import seeded, sine_network
from benchmarks.convergence.problems import PROBLEMS, friedman
from gncompile.app.comparison.optimisers import OPTIMISERS, TrainerSteps
from gncompile.app.comparison.running import Budget, run
from gncompile.app.comparison.store import read_all
from gncompile.app.comparison.task import Task
from gncompile.base import config
from gncompile.data import DataSpec, DataSplit, load
from gncompile.errors import CompileError, DataError

DRAWN = {"curves", "stiff", "table"}
"""Problems whose data need no files."""
SAMPLES = 24


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """The command sets the number of threads; the rest of the suite keeps its own."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(name: str) -> Task:
    """A problem on a few of its samples."""
    problem = PROBLEMS[name]
    folder = config.folder("data")
    if name not in DRAWN and not (folder and (folder / "faces").is_dir()):
        pytest.skip("GNCOMPILE_DATA holds no MNIST and no faces")
    if name == "curves":  # drawing all of them takes seconds
        few = DataSpec("curves", train=SAMPLES, validation=SAMPLES)
        problem = replace(problem, data=lambda: load(few))
    return problem.task(SAMPLES)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_trains_by_ours_and_by_torch(name: str) -> None:
    task = small(name)
    model, x, y = task.build(0), task.data.train_x, task.data.train_y
    before, _ = task.losses(model)
    ours = TrainerSteps("kfac_rp", task, model, 0)
    # float32 sums over up to 24 · 784 terms, in another order
    assert float(ours.trainer.loss(x, y)) == pytest.approx(before, rel=1e-5)
    ours.step(x, y, 0.0)
    assert task.losses(model)[0] < before
    setting = {"lr": 1e-3, "schedule": "constant"}
    adam = run(task, OPTIMISERS["adam"], setting, 0, Budget(1, "u"))
    assert adam.points[0].train == before  # from the same weights
    assert adam.final not in (before, math.inf)


def test_a_network_is_drawn_from_its_seed_alone() -> None:
    build = seeded(lambda: nn.Linear(3, 3))
    state = torch.random.get_rng_state()
    first, again, other = build(0), build(0), build(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first.weight, again.weight)  # type: ignore[arg-type]
    assert not torch.equal(first.weight, other.weight)  # type: ignore[arg-type]


def test_a_sine_network_keeps_its_activations_spread_at_any_depth() -> None:
    """With weights of variance 2/n, after Sitzmann et al. (2020), a pre-activation is normal with variance
    2v if the sines below have variance v, so ``v = (1 - e^(-4v)) / 2``: 0.398 in every layer."""
    torch.manual_seed(0)
    network = sine_network(256, 6)
    x = 2 * torch.rand(4000, 2) - 1
    with torch.no_grad():
        for layer in list(network)[:-1]:
            x = layer(x)
    # A limit of wide layers: a few per cent at width 256.
    assert float(x.var()) == pytest.approx(0.398, rel=0.05)


def test_the_table_is_friedmans() -> None:
    data = friedman(5000)
    x = torch.cat([data.train_x, data.validation_x])
    y = torch.cat([data.train_y, data.validation_y])[:, 0]
    assert (len(data.train_x), len(data.validation_x)) == (4000, 1000)
    assert torch.equal(friedman(5000).train_x, data.train_x)
    unit = x / 12**0.5 + 0.5
    known = (
        10 * torch.sin(torch.pi * unit[:, 0] * unit[:, 1])
        + 20 * (unit[:, 2] - 0.5) ** 2
        + 10 * unit[:, 3]
        + 5 * unit[:, 4]
    )
    # The signal's variance is 23.8 against 1 of the noise.
    correlation = torch.corrcoef(torch.stack([known, y]))[0, 1]
    assert float(correlation) == pytest.approx((23.8 / 24.8) ** 0.5, abs=0.005)


# --- FACES ----------------------------------------------------------------------------------------


def matlab(images: np.ndarray) -> bytes:
    """A MATLAB 5 file with ``faces: [4096, 400]``, as its format's description has it."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack("<2I", kind, len(content)) + content + b"\0" * (-len(content) % 8)

    columns = np.ascontiguousarray(images.reshape(400, 64, 64).transpose(0, 2, 1))
    body = (
        element(6, struct.pack("<2I", 9, 0))
        + element(5, struct.pack("<2i", 4096, 400))
        + element(1, b"faces")
        + element(2, columns.tobytes())
    )
    packed = zlib.compress(struct.pack("<2I", 14, len(body)) + body)
    return b"MATLAB 5.0".ljust(128, b" ") + struct.pack("<2I", 15, len(packed)) + packed


@pytest.fixture
def olivetti_folder(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (40, 10, 64, 64)).astype(np.uint8)
    (tmp_path / "faces").mkdir()
    (tmp_path / "faces" / "olivettifaces.mat").write_bytes(matlab(images))
    np.save(tmp_path / "images.npy", images)
    return tmp_path


def test_the_olivetti_images_are_read_upright(olivetti_folder: Path) -> None:
    images = np.load(olivetti_folder / "images.npy")
    found = faces.read_faces(olivetti_folder / "faces" / "olivettifaces.mat")
    assert np.array_equal(found, images)


def test_faces_are_standardised_and_of_different_people(olivetti_folder: Path) -> None:
    with config.using(data=olivetti_folder):
        data, again = faces.faces(variants=2), faces.faces(variants=2)
    assert data.train_x.shape == (25 * 10 * 2, 625)
    assert data.validation_x.shape == (10 * 10, 625)
    assert torch.equal(data.train_x, again.train_x)
    means, deviations = data.train_x.mean(dim=1), data.train_x.std(dim=1)
    torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-5, rtol=0)
    torch.testing.assert_close(deviations, torch.ones_like(deviations), atol=1e-5, rtol=0)


def test_faces_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    with (
        config.using(data=tmp_path),
        pytest.raises(DataError, match="Olivetti faces are not on this"),
    ):
        faces.faces()
    path = tmp_path / "faces.mat"
    for content in (b"", b"x" * 500, matlab(np.zeros((40, 10, 64, 64), np.uint8))[:-50]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="MATLAB file") as caught:
            faces.read_faces(path)
        assert str(path) in str(caught.value)


# --- The command ----------------------------------------------------------------------------------


def test_the_command_makes_missing_runs_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "--problems",
        "stiff",
        "--budget",
        "3u",
        "--seeds",
        "0",
        "1",
        "--output",
        str(tmp_path),
        "--runs",
        str(tmp_path / "runs"),
    ]
    runs = tmp_path / "runs" / "run-all"
    assert main([*given, "--optimisers", "kfra", "lbfgs"]) == 0
    first = {(each.optimiser, each.seed): each.points for each in read_all(runs)}
    assert set(first) == {(name, seed) for name in ("kfra", "lbfgs") for seed in (0, 1)}
    capsys.readouterr()
    assert main([*given, "--optimisers", "kfra", "lbfgs", "kflr"]) == 0
    printed = capsys.readouterr().out
    assert "kflr defaults, seed 1: done" in printed
    assert "kfra defaults, seed 0: done" not in printed
    assert (tmp_path / "gauss-newton.png").exists()  # of kfra and kflr
    assert {(e.optimiser, e.seed): e.points for e in read_all(runs)}.items() >= first.items()
    machine = read_all(runs)[0].environment
    assert {"cpu", "torch", "commit", "threads", "clock"} <= set(machine)
    for name in ("report.md", "points.csv", "standings.json", "stiff.png"):
        assert (tmp_path / name).exists()


def test_a_killed_benchmark_leaves_whole_runs(tmp_path: Path) -> None:
    arguments = ["--problems", "stiff", "--optimisers", "kfra", "--budget", "100000u"]
    folders = ["--output", str(tmp_path), "--runs", str(tmp_path / "runs")]
    command = [sys.executable, "-m", "benchmarks.convergence", *arguments, *folders]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("stiff:")  # at work
    process.kill()
    process.wait()
    runs = tmp_path / "runs" / "run-all"
    assert read_all(runs) == []
    short = ["--problems", "stiff", "--optimisers", "kfra", "--budget", "2u", "--seeds", "0"]
    assert main([*short, *folders]) == 0
    assert [each.status for each in read_all(runs)] == ["done"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--problems", "stif"], "Did you mean 'stiff'?"),
        (["--optimisers", "addam"], "Did you mean 'adam'?"),
        (["--budget", "soon"], "'soon' is no budget"),
    ],
)
def test_the_command_names_what_it_does_not_know(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*given, "--output", str(tmp_path)]) == 1
    assert said in capsys.readouterr().err


# --- Alignment ------------------------------------------------------------------------------------


def tiny(loss: object = "mse") -> Task:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(12, 2, generator=generator, dtype=torch.float64)
    build = seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.float64
    )
    objective = PROBLEMS["stiff"].torch_loss
    return Task("tiny", build, loss, objective, DataSplit(x, y, x, y, (3,)), 12)  # type: ignore[arg-type]


def flat(vectors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in vectors.values()])


def test_the_exact_update_solves_the_dense_system(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny()
    model, x, y = task.build(0), task.data.train_x, task.data.train_y
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    jacobian = torch.cat(
        [
            each.reshape(24, -1)
            for each in torch.autograd.functional.jacobian(
                lambda *own: torch.func.functional_call(
                    model, dict(zip(parameters, own, strict=True)), (x,)
                ),
                tuple(parameters.values()),
            )
        ],
        dim=1,
    )
    # half the squared error has the output Hessian 1/N
    matrix = jacobian.T @ jacobian / 12 + 0.01 * torch.eye(jacobian.shape[1])
    residual = (model(x) - y).detach().reshape(24) / 12
    expected = -torch.linalg.solve(matrix, jacobian.T @ residual)
    gradient = alignment.gradients(model, task.objective, x, y)
    product = alignment.gauss_newton(model, task.objective, x, y)
    monkeypatch.setattr(alignment, "TOLERANCE", 1e-6)
    found, iterations = alignment.conjugate_gradients(product, gradient, 0.01)
    assert 0 < iterations < 100
    # The condition number is below 1e3
    assert float((flat(found) - expected).norm() / expected.norm()) < 1e-3


@pytest.mark.parametrize("method", ["kfra", "kfac"])
def test_first_steps_leave_no_trace(method: str) -> None:
    """A step from other parameters, with another damping and other draws, does not show in the next."""
    task = tiny()
    model, x, y = task.build(0), task.data.train_x, task.data.train_y
    step = alignment.FirstStep(task, model, x, method)
    first = step.update(model, x, y, 0.1, seed=2)
    other = step.update(task.build(1), x, y, 0.01, seed=3)
    assert not torch.equal(flat(first), flat(other))
    assert torch.equal(flat(first), flat(step.update(model, x, y, 0.1, seed=2)))


def test_a_linear_network_of_one_layer_is_aligned_exactly() -> None:
    """Its Gauss-Newton matrix is a Kronecker product; undamped, the factored step is the exact one."""
    task = tiny()
    build = seeded(lambda: nn.Linear(3, 2), torch.float64)
    task = Task("linear", build, "mse", task.objective, task.data, 12)
    found = alignment.measure(task, moments=(0,), dampings=(1e-6,), batch_size=12)
    cosines = {each.method: each.cosine for each in found}
    assert cosines["kfra"] == pytest.approx(1, abs=1e-4)
    assert cosines["kflr"] == pytest.approx(1, abs=1e-4)
    assert 0 < cosines["gradient"] < 0.999


def test_alignment_is_measured_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # a row a line
    found = alignment.measure(tiny(), moments=(0, 3), dampings=(0.1,), batch_size=12)
    assert [each.method for each in found] == ["gradient", *alignment.METHODS] * 2
    assert all(0 < each.cosine <= 1 + 1e-12 for each in found)
    assert all(each.residual <= alignment.TOLERANCE for each in found)
    alignment.write(found, tmp_path)
    assert (tmp_path / "alignment.png").exists()
    records = json.loads((tmp_path / "alignment.json").read_text())
    assert [alignment.Alignment(**each) for each in records] == found
    header, _, *rows = alignment.text(found).splitlines()
    assert header.split()[3:8] == ["gradient", *alignment.METHODS]
    assert [row.split()[1] for row in rows] == ["0", "3"]


def test_conjugate_gradients_stop_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny()
    model, x, y = task.build(0), task.data.train_x, task.data.train_y
    monkeypatch.setattr(alignment, "ITERATIONS", 3)
    gradient = alignment.gradients(model, task.objective, x, y)
    product = alignment.gauss_newton(model, task.objective, x, y)
    found, iterations = alignment.conjugate_gradients(product, gradient, 0.01)
    assert iterations == 3
    assert alignment.cosine(found, gradient) < 0  # downhill already
    assert alignment.cosine(found, {name: 0 * g for name, g in gradient.items()}) == 0


def test_a_loss_that_is_not_convex_has_no_exact_update() -> None:
    gradient = {"w": torch.ones(2, dtype=torch.float64)}
    with pytest.raises(CompileError, match="negative eigenvalue"):
        alignment.conjugate_gradients(
            lambda v: {"w": torch.tensor([-1.0, 0.5]).double() * v["w"]}, gradient, 0.1
        )
