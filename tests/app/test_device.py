"""``--device``: what it means on a machine, and that a training on a GPU is that of the CPU.

There need be no GPU: :mod:`pretend_cuda` has tensors that say they are on one and refuse what torch refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import losses, run
from pretend_cuda import OnCuda, pretended
from small_model import HEAD, write_model
from torch import nn

import gncompile
from gncompile.app.device import device_of
from gncompile.app.launched import together
from gncompile.app.runs import trained_on
from gncompile.app.training_run import TrainingRun
from gncompile.base.settings import Settings
from gncompile.errors import GncompileError, ModelFileError, ProcessesError
from gncompile.frontends.example_inputs import checked_examples
from gncompile.frontends.model_file import load_model_file
from gncompile.training.first_order import FirstOrder
from gncompile.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("without_pictures")

TABLE = """
[data]
name = "rows.csv"
targets = ["y"]
weights = "w"
validation = 20
[network]
hidden = [4]
[training]
dtype = "float64"
updates = 4
output_bias = "mean"
metrics = ["rmse"]
"""
PDE = """
[pde]
box = { x = [0, 1] }
outputs = ["u"]
reference = "sin(pi*x)"
[pde.term.interior]
equation = "u__x__x + pi**2*sin(pi*x)"
points = 40
[pde.term.boundary]
equation = "u"
points = 2
faces = true
[network]
hidden = [6]
[training]
updates = 3
[training.options]
damping_tries = 1  # what a step that runs ahead of the host can do
"""


def table(folder: Path, text: str = TABLE) -> Path:
    """A table with numbers, categories and weights, and its model file."""
    rows = [f"{i % 7},{'abc'[i % 3]},{2.5 * (i % 7) + i % 3},{1 + i % 2}" for i in range(80)]
    (folder / "rows.csv").write_text("\n".join(["x,kind,y,w", *rows]) + "\n")
    path = folder / "table.toml"
    path.write_text(text)
    return path


def launch(patch: pytest.MonkeyPatch, local_rank: int, local_size: int) -> None:
    """This process is one of those that torchrun has started on one machine."""
    told = {"RANK": local_rank, "WORLD_SIZE": local_size, "LOCAL_RANK": local_rank}
    for name, number in {**told, "LOCAL_WORLD_SIZE": local_size}.items():
        patch.setenv(name, str(number))


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Two GPUs, of which nothing but their number is known; the list tells which were made current."""
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pretended(monkeypatch):
        yield


# --- which one it is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)])
@pytest.mark.usefixtures("gpus")
def test_a_gpu_has_its_number(word: str, index: int) -> None:
    assert device_of(word) == torch.device("cuda", index)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.usefixtures("gpus")
def test_each_process_of_a_launch_takes_a_gpu_of_its_own(
    rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(monkeypatch, rank, 2)
    assert device_of("cuda") == torch.device("cuda", rank)
    assert device_of("cpu") == torch.device("cpu")


def test_the_cpu_asks_nothing_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("is_available", "device_count", "set_device", "_lazy_init"):
        monkeypatch.delattr(torch.cuda, name)
    assert device_of("cpu") == torch.device("cpu")


@pytest.mark.parametrize("word", ["gpu", "cuda:", "cuda:-1", "cuda:1\n", "mps", "", "cuda:9999"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(GncompileError, match=r"(?s)unknown device.*give cpu, cuda, or cuda:N"):
        device_of(word)


@pytest.mark.parametrize(
    ("built", "text"),
    [(False, "is built without CUDA.*pytorch.org"), (True, "finds no GPU.*nvidia-smi")],
)
def test_a_machine_without_a_gpu_says_so_and_nothing_is_left(
    built: bool,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    with pytest.raises(GncompileError, match=f"(?s){text}.*--device cpu"):
        device_of("cuda")
    folder = tmp_path / "run"
    assert run("train", write_model(tmp_path), "--device", "cuda", "--out", folder) == 1
    assert f"torch {torch.__version__}" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.usefixtures("gpus")
def test_a_number_that_no_gpu_has() -> None:
    with pytest.raises(GncompileError, match=r"(?s)number 2: torch sees 2 GPUs.*--device cuda"):
        device_of("cuda:2")


@pytest.mark.usefixtures("gpus")
def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, 2, 4)
    with pytest.raises(
        ProcessesError, match=r"(?s)process 2 of the 4 .*2 GPUs.*--nproc-per-node 2"
    ):
        device_of("cuda")
    with pytest.raises(ProcessesError, match="4 processes would share one GPU"):
        device_of("cuda:1")


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda", "cpu:gloo,cuda:nccl")])
def test_processes_on_gpus_meet_by_nccl(
    device: str, backend: str, gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist

    from gncompile.runtime import first_process

    launch(monkeypatch, 1, 2)
    made: list[str] = []
    met = iter([(dist.HashStore(), 1, 2)])
    module = import_module("torch.distributed.rendezvous")  # a function has its name, too
    monkeypatch.setattr(module, "rendezvous", lambda *at, **given: met)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: made.append(backend))
    monkeypatch.setattr(first_process, "close", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    place = device_of(device)
    with together(1.0, place):
        assert made == [backend]
        assert gpus == ([place] if device == "cuda" else [])


def test_a_model_file_says_nothing_of_devices(tmp_path: Path) -> None:
    path = write_model(tmp_path, f'{HEAD}device = "cuda"\n')
    with pytest.raises(ModelFileError, match=r"(?s)device.*give --device cuda to the command"):
        load_model_file(path)


# --- what is computed there ------------------------------------------------------------------------------


def test_tensors_that_are_mixed_would_be_noticed(gpu: None) -> None:
    there = torch.ones(3).to("cuda:0")
    assert isinstance(there + 1, OnCuda)
    assert (there + there).sum().item() == 6
    with pytest.raises(RuntimeError, match="same device"):
        there + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()


def test_a_run_on_a_gpu_is_that_of_the_cpu(
    tmp_path: Path,
    pictures: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Report, pictures, predictions and weights too; the run folder knows where it was."""
    monkeypatch.setattr(
        Trainer, "report", lambda *given: None
    )  # of the derivation, which takes long
    path = table(tmp_path)
    assert run("train", path, "--quiet", "--out", tmp_path / "here") == 0
    with pretended(monkeypatch):
        there = "--device", "cuda"
        assert run("train", path, "--quiet", "--out", tmp_path / "there", *there) == 0
        asked = tmp_path / "there", tmp_path / "rows.csv", *there
        assert run("predict", *asked, "--out", tmp_path / "there.csv") == 0
        capsys.readouterr()
        assert run("evaluate", *asked, "--json") == 0
        evaluated = json.loads(capsys.readouterr().out)
        loaded = gncompile.load(tmp_path / "there", device="cuda")
        assert isinstance(next(loaded.module.parameters()), OnCuda)
        assert loaded.trainer.device.type == "cuda"
    # A step on a device has guards where the host would look, and adds up in another order.
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "here"), rel=1e-9)
    record = json.loads((tmp_path / "there" / "run.json").read_text())["settings"]
    assert record["device"] == "cuda"
    assert "float64, on cuda" in (tmp_path / "there" / "report.md").read_text()
    assert {f.name for f in (tmp_path / "here").iterdir()} == {
        f.name for f in (tmp_path / "there").iterdir()
    }
    here = gncompile.load(tmp_path / "there")
    assert here.evaluate(tmp_path / "rows.csv") == pytest.approx(evaluated, rel=1e-12)
    predicted = np.genfromtxt(tmp_path / "there.csv", skip_header=1)
    np.testing.assert_allclose(predicted, here.predict(tmp_path / "rows.csv")["y"], rtol=1e-12)


def test_a_run_goes_on_on_another_device(tmp_path: Path, gpu: None) -> None:
    path, folder = table(tmp_path), tmp_path / "run"
    TrainingRun.start(path, tmp_path / "whole", updates=3, progress=False).train()
    TrainingRun.start(path, folder, updates=1, progress=False).train()
    for device in ("cuda", "cpu"):
        resumed = TrainingRun.resume(folder, False, updates=1, device=device)
        assert resumed.trainer.device.type == device
        resumed.train()
        assert trained_on(folder) == device
    # The guards change a rounding, the rest is float64's sums in another order.
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), rel=1e-9)


def test_an_optimisers_state_goes_where_the_parameters_are(gpu: None) -> None:
    """But for the number of steps, which torch's optimisers keep on the host."""
    here = {"w": torch.ones(2, 3)}
    settings, gradient = Settings(method="adam"), {"w": torch.full((2, 3), 0.5)}
    first = FirstOrder(settings, here)
    first.step(gradient)
    moved = FirstOrder(settings, {"w": torch.zeros(2, 3).to("cuda:0")})
    moved.load_state_dict(first.state_dict())
    state = moved.state_dict()
    assert {name: t.device.type for name, t in state.items()} == {
        "last_good/w": "cuda", "exp_avg/w": "cuda", "exp_avg_sq/w": "cuda", "step/w": "cpu",
    }  # fmt: skip
    assert torch.equal(state["exp_avg/w"].cpu(), first.state_dict()["exp_avg/w"])


@pytest.mark.parametrize("budget", [10_000, 2000])  # of 72 rows of 9 pixels, in batches of 16
def test_data_that_do_not_fit_the_budget_stay_on_the_host(
    budget: int, tmp_path: Path, gpu: None
) -> None:
    """An autoencoder's targets are its inputs wherever they are."""
    path = write_model(tmp_path, f"{HEAD}[training.options]\nmemory_budget = {budget}\n")
    made = TrainingRun.start(path, tmp_path / "run", updates=1, progress=False, device="cuda")
    assert isinstance(made.batches.x, OnCuda) == (budget == 10_000)
    assert made.batches.y is made.batches.x
    made.train()
    assert len(losses(tmp_path / "run")) == 1


def test_equations_are_solved_on_a_gpu(tmp_path: Path, gpu: None) -> None:
    """With the picture of the solution, and its error."""
    path = tmp_path / "poisson.toml"
    path.write_text(PDE)
    for device in ("cpu", "cuda"):
        assert run("train", path, "--quiet", "--out", tmp_path / device, "--device", device) == 0
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-9)
    there = gncompile.load(tmp_path / "cuda", device="cuda")
    points = {"x": [0.1, 0.5]}
    here = gncompile.load(tmp_path / "cuda")
    np.testing.assert_allclose(there.predict(points)["u"], here.predict(points)["u"], rtol=1e-12)
    assert there.evaluate() == pytest.approx(here.evaluate(), rel=1e-9)
    assert there.trainer.device.type == "cuda"


def test_commands_that_compile_do_it_there(
    tmp_path: Path, gpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    path, there = table(tmp_path), ("--device", "cuda")
    assert run("check", path, *there) == 0
    assert run("explain", path, *there) == 0
    assert run("emit", path, "--out", tmp_path / "source", *there) == 0
    assert run("tune", path, "--quiet", *there) == 0
    assert "nothing to choose among" in capsys.readouterr().out


def test_examples_of_the_host_are_enough_to_compile_a_model_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pretended(monkeypatch):
        model = nn.Linear(3, 2).to("cuda:0")
        (example,) = checked_examples(model, torch.zeros(2, 3), torch.float32)
        assert isinstance(example, OnCuda)
