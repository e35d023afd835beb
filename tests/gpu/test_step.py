"""Steps that run ahead of the host: captured graphs, no waiting, no allocation, the same bits each time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import places
import pytest
import torch
from comparison import assert_close
from torch import Tensor, nn
from training import assert_same_state, snapshot

import gncompile
from gncompile.runtime.draws import PhiloxDraws
from gncompile.runtime.graphs import Graphs
from gncompile.training.trainer import Trainer

WIDTHS = (20, 33, 5, 33, 20)
WARM_UP = 100
"""Steps after which every sequence of phases is captured: from step 20 on each is due once in 20 steps."""


def model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    a, b, c, d, e = WIDTHS
    layers = (
        nn.Linear(a, b),
        nn.Tanh(),
        nn.Linear(b, c),
        nn.Linear(c, d),
        nn.Tanh(),
        nn.Linear(d, e),
    )
    return nn.Sequential(*layers).to(dtype)


def batch(seed: int, rows: int = 301, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, WIDTHS[0], generator=generator, dtype=torch.float64).to(dtype)


def trainer(
    device: torch.device, method: str = "kfra", loss: Any = "mse", **options: Any
) -> Trainer:
    """On a model that is the same every time."""
    dtype = options.pop("dtype", torch.float32)
    network = model(dtype=dtype).to(device)
    options = {"backend": "triton", "precision": "high", **options}
    return gncompile.compile(network, loss, batch(0, dtype=dtype).to(device), method, **options)


def batches(device: torch.device, count: int = 4) -> list[Tensor]:
    return [batch(seed).to(device) for seed in range(count)]


@pytest.fixture
def no_waiting(cuda: torch.device) -> Iterator[None]:
    """Within this test, whatever waits for the device raises."""
    yield
    torch.cuda.set_sync_debug_mode("default")


# --- the same as elsewhere ----------------------------------------------------------------------------

# Every program here takes its kernels a minute to compile, so they are few.
PROGRAMS = [
    ("kfra", "mse", {}),
    ("kfra", "bce_with_logits", {"inverse": "eigen"}),
    ("kflr", "cross_entropy", {}),
    ("kfac", "cross_entropy", {"samples": 2}),
]


@pytest.mark.parametrize(("method", "loss", "options"), PROGRAMS)
def test_steps_are_those_of_the_torch_backend(
    method: str, loss: str, options: dict, device: torch.device
) -> None:
    """In float64, over a choice of γ, with equal draws."""
    options = {**options, "factor_damping_period": 3, "layer_steps": 2, "damping_period": 2,
               "guarded": True, "dtype": torch.float64, "precision": "highest"}  # fmt: skip
    ours = trainer(device, method, loss, **options)
    expected = trainer(torch.device("cpu"), method, loss, **{**options, "backend": "torch"})
    expected._executable.memory.draws = PhiloxDraws(0, torch.device("cpu"))
    for number in range(4):
        x = batch(number, 40, torch.float64)
        y = x.argmax(dim=1) if loss == "cross_entropy" else x
        got, wanted = ours.step(x.to(device), y.to(device)), expected.step(x, y)
        assert got.loss == pytest.approx(wanted.loss, rel=1e-9)
    # Float64 rounding, passed on by the inverses of damped factors: condition 1e4 at most.
    for p, q in zip(ours.model.parameters(), expected.model.parameters(), strict=True):
        assert_close(p.detach().cpu(), q.detach(), 1e-8)


@pytest.mark.parametrize(("name", "method"), [("convolutions", "kfra"), ("block", "auto")])
def test_steps_of_networks_with_places(name: str, method: str, device: torch.device) -> None:
    """A convolutional network and a transformer block, in float64 as above; the graph is replayed at last."""
    network, x, y = places.network(name, 40)
    x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
    options = {"guarded": True, "precision": "highest"}
    on_cpu = torch.device("cpu")
    ours, expected = (
        gncompile.compile(
            copy.deepcopy(network).double().to(where), "bce_with_logits", x.to(where), method,
            backend=backend, **options,
        )
        for where, backend in ((device, "triton"), (on_cpu, "torch"))
    )  # fmt: skip
    expected._executable.memory.draws = PhiloxDraws(0, on_cpu)
    for _ in range(4):
        got, wanted = ours.step(x.to(device), y.to(device)), expected.step(x, y)
        assert got.loss == pytest.approx(wanted.loss, rel=1e-9)
    for p, q in zip(ours.model.parameters(), expected.model.parameters(), strict=True):
        assert_close(p.detach().cpu(), q.detach(), 1e-8)


@pytest.mark.parametrize(
    ("method", "backend", "allowed"),
    # cuBLAS may choose another algorithm while it is captured; in float32 four trainings' steps drift.
    [("kfra", "triton", 0.0), ("kfac", "triton", 0.0), ("kfra", "torch", 1e-3)],
)
def test_a_captured_step_is_the_uncaptured_step(
    method: str, backend: str, allowed: float, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, random draws included, over every sequence of phases."""

    def run(steps: int) -> tuple[list[float], list[Tensor]]:
        t = trainer(cuda, method, backend=backend, refresh_every=3, factor_damping_period=7)
        stats = [t.step(x, x) for _ in range(steps // 4) for x in batches(cuda)]
        return [s.loss for s in stats], [p.detach().clone() for p in t.model.parameters()]

    captured = run(64)
    with monkeypatch.context() as patch:
        patch.setattr(Graphs, "run", lambda self, plan: self._executable.run(*plan))
        plain = run(64)
    if not allowed:
        assert captured[0] == plain[0]
        assert all(map(torch.equal, captured[1], plain[1]))
    assert captured[0] == pytest.approx(plain[0], rel=allowed)


@pytest.mark.parametrize("method", ["kfra", "kfac"])
def test_runs_are_bitwise_equal(method: str, device: torch.device) -> None:
    def run() -> dict[str, Any]:
        t = trainer(device, method)
        for x in batches(device, 24 if device.type == "cuda" else 2):
            t.step(x, x)
        return snapshot(t)

    assert_same_state(run(), run())


# --- ahead of the host --------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "loss"), [("kfra", "mse"), ("kfac", "cross_entropy")])
def test_a_thousand_steps_neither_wait_nor_allocate(
    method: str, loss: str, cuda: torch.device, no_waiting: None
) -> None:
    t = trainer(cuda, method, loss)
    xs = batches(cuda)
    ys = [x.argmax(dim=1) for x in xs] if loss == "cross_entropy" else xs
    for number in range(WARM_UP):
        t.step(xs[number % 4], ys[number % 4])
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    stats = [t.step(xs[number % 4], ys[number % 4]) for number in range(1000)]
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    # What a step allocates between graphs comes from torch's cache, and goes back to it.
    for key in ("num_device_alloc", "num_alloc_retries", "allocated_bytes.all.current"):
        assert after[key] == before[key], key
    assert stats[-1].loss < stats[0].loss
    assert stats[-1].rejected == 0


def test_steps_on_another_stream(cuda: torch.device) -> None:
    """Graphs captured on one stream are replayed on the caller's."""
    expected, other = trainer(cuda), trainer(cuda)
    stream = torch.cuda.Stream()
    for number in range(30):
        x = batch(number).to(cuda)
        expected.step(x, x)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            other.step(x, x)
        torch.cuda.current_stream().wait_stream(stream)
    assert_same_state(snapshot(expected), snapshot(other))


# --- bad batches, other sizes, checkpoints ------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_batch_is_left_out(bad: float, device: torch.device) -> None:
    t = trainer(device, guarded=True)
    xs = batches(device)
    for number in range(30 if device.type == "cuda" else 1):
        t.step(xs[number % 4], xs[number % 4])
    before = [p.detach().clone() for p in t.model.parameters()]
    broken = xs[0].clone()
    broken[17, 3] = bad
    assert t.step(broken, xs[0]).rejected == t.rejected == 1
    assert all(map(torch.equal, before, t.model.parameters()))
    after = t.step(xs[1], xs[1])
    assert after.rejected == 1
    assert after.loss == after.loss, "the step after it is an ordinary one"


def test_labels_out_of_range_are_left_out_and_the_device_lives(cuda: torch.device) -> None:
    t = trainer(cuda, loss="cross_entropy")
    x = batches(cuda)[0]
    y = x.argmax(dim=1)
    t.step(x, y)
    wrong = y.clone()
    wrong[5] = WIDTHS[-1]
    assert t.step(x, wrong).rejected == 1
    assert t.step(x, y).rejected == 1


def test_batches_of_many_sizes(cuda: torch.device) -> None:
    """More sizes than stay bound, growing and shrinking, each met until it is captured."""
    sizes = [301, 17, 640, 1, 128] * 6
    options = {"dtype": torch.float64, "layer_steps": 0, "trace_correction": False}
    ours = trainer(cuda, precision="highest", **options)
    expected = trainer(cuda, backend="torch", **options)
    for number, rows in enumerate(sizes):
        x = batch(number, rows, torch.float64).to(cuda)
        # Float64, passed on for 30 steps; a wrong buffer shows at once.
        assert ours.step(x, x).loss == pytest.approx(expected.step(x, x).loss, rel=1e-5), number
    assert ours.rejected == expected.rejected


def test_replays_after_a_load_go_on_from_the_loaded_state(cuda: torch.device) -> None:
    t = trainer(cuda, "kfac")
    xs = batches(cuda)
    for number in range(WARM_UP):
        t.step(xs[number % 4], xs[number % 4])
    saved = copy.deepcopy(t.state_dict())
    first = [t.step(xs[number % 4], xs[number % 4]).loss for number in range(24)]
    end = snapshot(t)
    t.load_state_dict(saved)
    again = [t.step(xs[number % 4], xs[number % 4]).loss for number in range(24)]
    assert again == first
    assert_same_state(snapshot(t), end)


def test_a_resumed_training_goes_on_bit_by_bit(cuda: torch.device, tmp_path: Path) -> None:
    t = trainer(cuda, "kfac", average=0.9)
    xs = batches(cuda)
    for number in range(30):
        t.step(xs[number % 4], xs[number % 4])
    t.save(tmp_path / "saved")
    resumed = Trainer.resume(tmp_path / "saved", model(seed=1).to(cuda))
    assert (resumed.backend, resumed.precision) == ("triton", "high")
    for number in range(30, 70):
        x = xs[number % 4]
        assert t.step(x, x).loss == resumed.step(x, x).loss, number
    assert_same_state(snapshot(t), snapshot(resumed))


def test_prediction_and_loss_between_steps(device: torch.device) -> None:
    """They use the step's buffers, and leave its graphs as they are."""
    t = trainer(device)
    for x in batches(device, 8 if device.type == "cuda" else 1):
        t.step(x, x)
        with torch.no_grad():
            expected = t.model(x)
        # Three TF32 parts over four layers.
        assert_close(t.predict(x), expected, 1e-4)
        assert float(t.loss(x, x)) == pytest.approx(
            float((expected - x).square().sum() / len(x) / 2), rel=1e-4
        )


def test_first_order_methods_run(device: torch.device) -> None:
    t = trainer(device, "adam")
    losses = [t.step(x, x).loss for x in [batch(0).to(device)] * 5]
    assert losses[-1] < losses[0]
