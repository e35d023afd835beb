"""Checkpoints: bitwise resume, in this process and in another; damage, and checkpoints of other models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import elsewhere
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from training import (
    NETWORKS,
    OUTPUTS,
    WIDTH,
    assert_same_state,
    batches,
    compiled,
    network,
    samples,
    snapshot,
)

import gncompile
from gncompile.data import Batches
from gncompile.errors import CheckpointError
from gncompile.losses import loss_names, resolve_loss
from gncompile.training import checkpoint
from gncompile.training.sealed_file import digest_of
from gncompile.training.stored_loss import loss_from_data, loss_to_data
from gncompile.training.trainer import Trainer

STEPS = 7  # ends within an epoch, and between two refreshes of the inverses
VARIANTS: dict[str, dict[str, Any]] = {
    "kfra": {"method": "kfra", "average": 0.9, "refresh_always": 2},
    "kflr": {"method": "kflr", "momentum": False},
    "seldom": {"method": "kfra", "factors_every": 3, "refresh_always": 2},
    "kfac": {"method": "kfac", "average": 0.5, "samples": 2},
    "kfac_rp": {"method": "kfac_rp", "l2": {"*.weight": 0.01}},
    "exact": {"method": "kfra", "inverse": "eigen", "damping_bounds": (0.05, 10.0)},
    "adam": {"method": "adam"},
    "sgd": {"method": "sgd", "learning_rate": 0.05},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.safetensors"


def fit(trainer: Trainer, steps: int, **options: Any) -> list[float]:
    """The losses of so many steps over the shared batches."""
    return trainer.fit(batches(), updates=steps, progress=False, **options).loss


# --- Bitwise resume -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_resume_is_bitwise(variant: str, path: Path, backend: str) -> None:
    options = {**VARIANTS[variant], "backend": backend}
    whole, begun = compiled(network(), **options), compiled(network(), **options)
    losses = fit(whole, 2 * STEPS)
    assert fit(begun, STEPS, checkpoint=path) == losses[:STEPS]
    resumed = Trainer.resume(path, network(seed=8))
    assert resumed.settings == begun.settings
    assert resumed.backend == backend
    assert_same_state(snapshot(resumed), snapshot(begun))
    assert fit(resumed, STEPS) == losses[STEPS:]
    assert_same_state(snapshot(resumed), snapshot(whole))


@pytest.mark.parametrize("steps", [1, 2])
def test_resume_after_the_first_steps_on_all_samples(steps: int, path: Path) -> None:
    x, y = samples(30)
    trainer = compiled(network())
    for _ in range(steps):
        trainer.step(x, y)
    trainer.save(path)
    resumed = Trainer.resume(path, network(seed=8))
    for _ in range(3):
        assert resumed.step(x, y).loss == trainer.step(x, y).loss


def _gone_on(begun: Path, end: Path) -> list[float]:
    trainer = Trainer.resume(begun, network(seed=8))
    losses = fit(trainer, STEPS)
    trainer.save(end)
    return losses


def test_resume_in_another_process_is_bitwise(path: Path, tmp_path: Path) -> None:
    whole, begun = (compiled(network(), **VARIANTS["kfac"]) for _ in range(2))  # which draws
    losses = fit(whole, 2 * STEPS)
    fit(begun, STEPS, checkpoint=path)
    end = tmp_path / "end.safetensors"
    assert elsewhere(_gone_on, path, end) == losses[STEPS:]
    expected, got = snapshot(whole), checkpoint.load(end).state
    assert_same_state(got, expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network(name: str, path: Path) -> None:
    trainer = compiled(network(name))
    fit(trainer, 3, checkpoint=path)
    resumed = Trainer.resume(path, network(name, seed=4))
    assert_same_state(snapshot(resumed), snapshot(trainer))


def test_state_dict_moves_a_trainer(tmp_path: Path) -> None:
    a, b = compiled(network(), "kfac", average=0.9), compiled(network(seed=3), "kfac", average=0.9)
    fit(a, STEPS)
    torch.save(a.state_dict(), tmp_path / "state.pt")
    b.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for seed in range(STEPS):
        assert a.step(*samples(9, seed=seed)) == b.step(*samples(9, seed=seed))
    assert_same_state(snapshot(b), snapshot(a))


def test_an_early_stop_counts_on(path: Path) -> None:
    options: dict[str, Any] = {"validation": samples(5), "validate_every": 1, "early_stop": 3}

    def prepared(trainer: Trainer, losses: list[float]) -> Trainer:
        script = iter(losses)
        trainer.evaluation.loss = lambda *_, **__: next(script)  # type: ignore[method-assign]
        return trainer

    script = [5.0, 3.0, 4.0, 4.0, 4.0, 1.0]
    assert len(fit(prepared(compiled(network()), script), 6, **options)) == 5
    begun = prepared(compiled(network()), script)
    assert len(fit(begun, 3, checkpoint=path, **options)) == 3
    resumed = prepared(Trainer.resume(path, network()), script[3:])
    assert len(fit(resumed, 6, **options)) == 2


def test_the_order_may_be_started_again(path: Path) -> None:
    trainer = compiled(network(), "adam")
    fit(trainer, 3, checkpoint=path)
    data = batches()
    resumed = Trainer.resume(path, network())
    resumed.fit(data, updates=1, progress=False, continue_order=False)
    assert data.state_dict()["position"] == 1
    other = Batches(*samples(30), 16)
    with pytest.raises(CheckpointError, match="the saved loader has another samples"):
        Trainer.resume(path, network()).fit(other, updates=1, progress=False)


def test_buffers_and_frozen_parameters_are_restored(path: Path) -> None:
    class Normalised(nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.register_buffer("shift", torch.full((WIDTH,), shift))
            self.frozen = nn.Linear(WIDTH, 4).requires_grad_(False)
            self.last = nn.Linear(4, OUTPUTS)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.frozen(x - self.shift)))

    torch.manual_seed(0)
    trainer = compiled(Normalised(0.5).double())
    fit(trainer, 3, checkpoint=path)
    torch.manual_seed(1)
    model = Normalised(-2.0).double()
    resumed = Trainer.resume(path, model)
    x, y = samples(20)
    assert float(resumed.loss(x, y)) == float(trainer.loss(x, y))
    assert torch.equal(model(x), trainer.model(x))
    assert fit(resumed, 3, continue_order=False) == fit(trainer, 3)
    torch.manual_seed(1)
    other = compiled(Normalised(-2.0).double())
    with pytest.raises(CheckpointError, match=r"other values of .*shift.*compiled in"):
        other.load_state_dict(trainer.state_dict())


# --- Losses -------------------------------------------------------------------------------------------

MODULES = [
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.HuberLoss(delta=0.7),
    nn.SmoothL1Loss(beta=0.3),
    nn.CrossEntropyLoss(label_smoothing=0.1),
    nn.PoissonNLLLoss(),
]


@pytest.mark.parametrize(
    "spec", [*loss_names(), "exp(z) - y*z", "0.1*(z - y)**4 + (z - y)**2", *MODULES], ids=str
)
def test_losses_are_stored_as_text(spec: str | nn.Module) -> None:
    loss = resolve_loss(spec)
    assert loss_from_data(json.loads(json.dumps(loss_to_data(loss)))) == loss


def test_a_module_loss_is_restored(path: Path) -> None:
    trainer = gncompile.compile(network(), nn.HuberLoss(delta=0.3), samples()[0])
    fit(trainer, 3, checkpoint=path)
    resumed = Trainer.resume(path, network(seed=2))
    assert fit(resumed, 3, continue_order=False) == fit(trainer, 3)


# --- Other models -------------------------------------------------------------------------------------


class Wide(nn.Sequential):
    """Another width."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(WIDTH, 7), nn.Tanh(), nn.Linear(7, OUTPUTS))


def _sigmoids() -> nn.Module:
    model = network()
    model[1] = nn.Sigmoid()  # type: ignore[operator]
    return model


def _frozen() -> nn.Module:
    model = network()
    model[0].requires_grad_(False)  # type: ignore[operator, union-attr]
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Wide().double, "0.weight\n  expected: [7, 6]\n  got:      [5, 6]"),
        (lambda: network("gated"), "value.weight\n  expected: [5, 6]\n  got:      not there"),
        (
            lambda: network(dtype=torch.float32),
            "dtype\n  expected: torch.float32\n  got:      torch.float64",
        ),
        (_frozen, "0.weight\n  expected: not there\n  got:      [5, 6]"),
        (_sigmoids, "graph\n  expected: v2 = sigmoid(v1) : [5]\n  got:      v2 = tanh(v1) : [5]"),
    ],
)
def test_another_model(model: Any, expected: str, path: Path) -> None:
    compiled(network()).save(path)
    other = model()
    before = {name: t.clone() for name, t in other.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        Trainer.resume(path, other)
    text = str(caught.value)
    assert text.startswith("the checkpoint belongs to another model\n")
    assert expected in text
    assert f"where:      {path}" in text
    assert "('expected' is yours)" in text
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name])


def test_another_loss(path: Path) -> None:
    compiled(network()).save(path)
    with pytest.raises(CheckpointError) as caught:
        Trainer.resume(path, network(), loss="mse")
    assert "loss\n  expected: mse: " in str(caught.value)
    assert "\n  got:      bce_with_logits: " in str(caught.value)


@pytest.mark.parametrize("other", [{"method": "kfac"}, {"average": 0.0}, {"inverse": "eigen"}])
def test_a_state_of_other_settings(other: dict[str, Any]) -> None:
    trainer = compiled(network(), **other)
    before = snapshot(trainer)
    state = compiled(network(seed=1)).state_dict()
    with pytest.raises(CheckpointError, match="belongs to another model\nstates "):
        trainer.load_state_dict(state)
    assert_same_state(snapshot(trainer), before)


# --- Damage -------------------------------------------------------------------------------------------


def test_a_missing_checkpoint(path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Trainer.resume(path, network())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_checkpoint(share: float, path: Path) -> None:
    compiled(network()).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    _assert_damaged(path)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_bit(place: float, path: Path) -> None:
    compiled(network()).save(path)
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    _assert_damaged(path)


def test_other_files(path: Path) -> None:
    for content in (b"", b"not a checkpoint", b"\xff" * 100, b'{"a": 1}'):
        path.write_bytes(content)
        _assert_damaged(path)
    save_file({"x": torch.zeros(2)}, path)
    _assert_damaged(path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("inputs",), [[10**30]]),
        (("inputs",), [[2] * 70]),
        (("inputs",), [[2]] * 1000),
        (("inputs",), []),
        (("whole",), [[]]),
        (("whole",), [False, True]),
        (("whole",), 1),
        (("format",), "gncompile posterior 1"),
        (("fingerprint", "graph"), None),
        (("fingerprint", "trained parameters"), 10**400),
        (("fingerprint",), {}),
    ],
)
def test_headers_with_other_kinds_of_values(
    place: tuple[str, ...], value: object, path: Path
) -> None:
    """Their digest is right: anybody can make one."""
    compiled(network()).save(path)
    _forge(path, place, value)
    _assert_damaged(path)


@pytest.mark.parametrize("name", ["updates", "_rejected", "_held", "_since_refresh"])
@pytest.mark.parametrize("value", [-1, 10**400, "3", True])
def test_counters_are_whole_numbers(name: str, value: object, path: Path) -> None:
    compiled(network()).save(path)
    _forge(path, ("numbers", "counters", name), value)
    with pytest.raises(CheckpointError, match=f"counter {name}"):
        Trainer.resume(path, network())


def _forge(path: Path, place: tuple[str, ...], value: object) -> None:
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["gncompile"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    inner = about
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    text = json.dumps(about)
    header = {"gncompile": text, "digest": digest_of(text, tensors)}
    save_file(tensors, path, metadata=header)


def _assert_damaged(path: Path) -> None:
    model = network()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="damaged, or not one of gncompile's") as caught:
        Trainer.resume(path, model)
    assert str(path) in str(caught.value)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_later_format(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    compiled(network()).save(path)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 3") as caught:
        Trainer.resume(path, network())
    assert f"use gncompile {gncompile.__version__}" in str(caught.value)


def test_a_failed_save_keeps_the_old_checkpoint(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = compiled(network())
    trainer.save(path)
    before = path.read_bytes()

    def full_disk(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
        file.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        trainer.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_is_readable_without_gncompile(path: Path) -> None:
    trainer = compiled(network())
    fit(trainer, 2, checkpoint=path)
    with safe_open(path, framework="pt") as file:
        weight = file.get_tensor("model/0.weight")
        about = json.loads(file.metadata()["gncompile"])
    assert torch.equal(weight, trainer.model[0].weight)  # type: ignore[index, union-attr]
    assert about["settings"]["method"] == "kfra"
    assert about["inputs"] == [[WIDTH]]
    assert about["numbers"]["counters"]["updates"] == 2
