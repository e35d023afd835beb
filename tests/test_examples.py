"""The examples run: an activation of one's own in both its forms, the others on a small share of data."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from gncompile.app.training_run import compile_file
from gncompile.data import Batches
from gncompile.data.curves import curves
from gncompile.frontends.model_file import load_model_file
from gncompile.functions import parsing
from gncompile.functions import transfer as registry

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def custom():
    """The example as a module; what it declares is forgotten afterwards."""
    declared, functions = dict(registry._DECLARED), dict(parsing.FUNCTIONS)
    yield example("custom_activation")
    for table, before in ((registry._DECLARED, declared), (parsing.FUNCTIONS, functions)):
        table.clear()
        table.update(before)


METHODS = ("kfra", "kflr", "kfac", "kfac_rp", "empirical", "adam", "sgd")


def test_every_method_is_in_the_example(custom):
    assert custom.METHODS == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_declared_activation_trains_with_every_method(custom, method):
    first, last = custom.train(method)
    assert last < 0.97 * first


def test_a_curve_is_fitted(capsys: pytest.CaptureFixture[str]) -> None:
    example("curve_fit").main()
    printed = capsys.readouterr().out
    assert "standard errors by (JᵀWJ)⁻¹" in printed
    assert re.search(r"y\(0\) = 2\.\d+ ± 0\.0", printed)


def test_the_model_file_declares_the_same_activation(custom):
    file = load_model_file(EXAMPLES / "custom_activation.toml")
    assert file.transfers["smooth_step"].expression.equals(custom.smooth_step.expression)
    trainer = compile_file(file)
    x = torch.rand(64, 784, generator=torch.Generator().manual_seed(0))
    losses = [float(trainer.step(x, x).loss) for _ in range(3)]
    assert losses[-1] < 0.9 * losses[0]


def digits(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """In place of MNIST's: a bar in one of ten rows of a noisy image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=generator)
    images = 0.3 * torch.rand(count, 28, 28, generator=generator)
    images[torch.arange(count), 4 + 2 * labels, 8:20] += 0.7
    return images.flatten(1), labels


@pytest.mark.parametrize("name", ["lenet_mnist", "transformer_mnist"])
def test_digits_are_learned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = example(name)
    module.LAYERS = 1
    batches = Batches(*digits(128, seed=0), batch_size=64)
    module.train("auto", batches, digits(50, seed=1), epochs=5)
    losses = re.findall(r"auto, pass \d: loss (\S+), \S+% right", capsys.readouterr().out)
    assert float(losses[4]) < 0.97 * float(losses[0])


def test_a_table_is_learned() -> None:
    module = example("tabular_embeddings")
    before, after = (module.train("auto", 1000, updates) for updates in (1, 25))
    assert after < 0.6 * before


def test_tied_weights_are_learned() -> None:
    x, new = (torch.from_numpy(curves(100, 0, part)) for part in ("train", "validation"))
    module = example("tied_autoencoder")
    before, after = (module.train("kfra", x, new, updates) for updates in (1, 6))
    assert after < 0.8 * before


def test_a_plain_loop_is_interrupted_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    losses = example("plain_loop").train(epochs=3)
    assert losses[-1] < 0.3 * losses[0]
    assert capsys.readouterr().out.count("\n") == 3


def test_lightning_trains_validates_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = example("lightning_manual")
    first, path = module.train(tmp_path / "a", epochs=2)
    resumed, _ = module.train(tmp_path / "a", epochs=4, resume=path)
    whole, _ = module.train(tmp_path / "b", epochs=4)
    losses = [t.callback_metrics["validation_loss"] for t in (first, resumed, whole)]
    assert losses[1] < losses[0]
    assert losses[1] == losses[2]  # to the bit
    assert whole.global_step == 20


@pytest.mark.parametrize("name", ["GaussNewtonRegressor", "GaussNewtonClassifier"])
def test_the_estimators_are_those_of_scikit_learn(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    module = example("scikit_estimator")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where pickle looks for it
    estimator = getattr(module, name)(hidden=(3,), max_iter=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks of tables of a few random rows
        found = checks.check_estimator(estimator, on_skip=None, on_fail=None)
    wrong = [
        (each["check_name"], each["exception"]) for each in found if each["status"] == "failed"
    ]
    assert not wrong
    assert sum(each["status"] == "passed" for each in found) > 45


def test_an_estimator_in_a_pipeline_and_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    example("scikit_estimator").main()
    r2, right = re.findall(r"R² (\S+)|, (\S+)% right", capsys.readouterr().out)
    assert float(r2[0]) > 0.25
    assert float(right[1]) > 90


def test_error_bars_are_wide_in_the_gap_and_hold_new_measurements(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example("laplace_regression").main()
    printed = capsys.readouterr().out
    spread = {float(x): float(sd) for x, sd in re.findall(r"x = +(\S+) .*± (\S+)", printed)}
    assert min(spread[-6.0], spread[0.0], spread[6.0]) > 3 * max(spread[-3.0], spread[3.0])
    one, two = (float(share) for share in re.findall(r"([\d.]+)% of new", printed))
    assert 60 < one < 80 < 90 < two <= 100


def test_a_flow_is_found_and_an_image_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smooth pattern that is moved by one pixel, and a disc that is not where another one is."""
    flow = example("optical_flow")
    rows, columns = np.mgrid[:24, :24] / 4
    one, two = (np.sin(rows) * np.cos(columns - d) for d in (0.0, 0.25))
    truth = np.broadcast_to([0.0, 1.0], (24, 24, 2))
    known = np.ones((24, 24), bool)
    pair = flow.Pair("waves", one, two, truth, known, "j")
    monkeypatch.setattr(flow, "POINTS", 256)
    assert flow.end_point_error(flow.solve(pair, 12)[0], pair) < 0.3

    registration = example("registration")
    near, far = (np.exp(-((rows - 3) ** 2) - (columns - c) ** 2) for c in (2.6, 3.4))
    found = registration.register(far, near, 0.1, updates=6)
    assert found.ssd[1] < 0.2 * found.ssd[0]
    assert found.dice[1] > found.dice[0]
    assert found.folded == 0.0


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("poisson_2d", {"updates": 40}, 3e-2),
        ("poisson_5d", {"updates": 20, "points": 200}, 0.5),
        ("heat_1d", {"updates": 25}, 1e-2),
    ],
)  # errors of a few updates, three times and more what they are
def test_equations_are_solved(name, options, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert example(name).main(**options) < error
    assert (tmp_path / f"{name}.png").exists()


def test_a_coefficient_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert example("inverse_problem").main(updates=40) == pytest.approx(0.25, rel=0.1)


def test_the_reference_of_burgers_equation_solves_it():
    """Held against finite differences of itself, before the shock is steep."""
    burgers = example("burgers")
    p = torch.tensor([[0.3, 0.2], [-0.7, 0.1], [0.5, 0.3]], dtype=torch.float64)
    x, t = torch.tensor([[1e-3, 0], [0, 1e-3]], dtype=torch.float64)
    u, right, left, later, before = (burgers.reference(q) for q in (p, p + x, p - x, p + t, p - t))
    flow = (later - before) / 2e-3 + u * (right - left) / 2e-3
    diffusion = burgers.NU * (right - 2 * u + left) / 1e-6
    assert torch.allclose(flow, diffusion, atol=1e-4)  # h² times third derivatives below 100
    start = torch.tensor([[0.3, 0.0]], dtype=torch.float64)
    assert burgers.reference(start) == pytest.approx(-torch.sin(torch.pi * start[:, 0]))
