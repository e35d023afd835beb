"""What a step must keep to on a CUDA device, checked without one.

Tensors on torch's ``meta`` device have no values: whoever asks for one, or mixes in a tensor of the host,
mostly gets an error, as a step that runs ahead of the host must not do either on a GPU.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import normal
from torch import Tensor, nn
from training import NETWORKS, OUTPUTS, WIDTH, plain

import gncompile
from gncompile.app.api import understand
from gncompile.base.settings import Settings
from gncompile.losses import resolve_loss
from gncompile.losses.targets import class_rows, of_mass, within
from gncompile.pipeline import factor_program, step_program
from gncompile.program.phases import plan
from gncompile.program.timetable import due
from gncompile.runtime import graphs
from gncompile.runtime.draws import PhiloxDraws
from gncompile.runtime.executable import Executable
from gncompile.runtime.graphs import Graphs, uncaptured_phases
from gncompile.runtime.memory import Memory
from gncompile.training.ahead import AheadOfHost

META = torch.device("meta")


class Shuffled(nn.Module):
    """Features that are picked, permuted and joined: index tensors on the device."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 40), nn.Linear(40 + WIDTH, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)).view(-1, 5, 8).transpose(1, 2).flatten(1)
        return self.last(torch.cat([h, x], dim=1))


def somewhere_random(memory: Memory, kind: str, out: Tensor) -> None:
    """Random numbers where there is no generator."""
    out.copy_(torch.empty_like(out))


def on_meta(
    monkeypatch: pytest.MonkeyPatch,
    model: nn.Module,
    loss: str,
    y: Tensor,
    backend: str,
    **options: Any,
) -> tuple[AheadOfHost, Executable, Any]:
    """A guarded step whose parameters, states and buffers have no values."""
    monkeypatch.setattr(Memory, "random", somewhere_random)
    traced, declared, reader = understand(model, loss, torch.zeros(len(y), WIDTH))
    settings = Settings.from_options(guarded=True, factor_damping_period=3, **options)
    traced = replace(
        traced,
        parameters={k: v.detach().to(META) for k, v in traced.parameters.items()},
        constants={k: v.to(META) for k, v in traced.constants.items()},
    )
    program = step_program(traced.graph, declared, settings)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "Generator", lambda device: torch._C.Generator())
        executable = Executable(
            program, traced, declared, backend=backend, dtype=torch.float32, device=META
        )
    return AheadOfHost(executable, settings), executable, replace(reader, device=META)


@pytest.mark.parametrize(
    ("model", "method", "loss"),
    [
        (plain, "kfra", "bce_with_logits"),
        (Shuffled, "kflr", "cross_entropy"),
        (NETWORKS["gated"], "kfac", "cross_entropy"),
        (Shuffled, "kfra", "mse"),
    ],
)
def test_a_step_neither_asks_for_numbers_nor_leaves_its_device(
    model: Any, method: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    y = torch.zeros(10, dtype=torch.int64) if loss == "cross_entropy" else torch.zeros(10, OUTPUTS)
    options = {"method": method, "average": 0.9, "l2": 1e-3}
    ahead, executable, reader = on_meta(monkeypatch, model(), loss, y, "torch", **options)
    x, target = torch.zeros(10, WIDTH, device=META), y.to(META)

    def step(number: int) -> None:
        executable.load(reader.inputs(x), reader.target(10, target))
        ahead.step(number, 0, drops=False)

    step(0)  # binds the batch size, where constants are made

    def made(*_: object, **__: object) -> Tensor:
        raise AssertionError("a step copied numbers from the host")

    for name in ("tensor", "as_tensor", "from_numpy", "nonzero"):
        monkeypatch.setattr(torch, name, made)
    for number in range(1, 6):  # step 3 chooses γ, step 4 checks ρ
        step(number)


def test_meta_tensors_would_notice() -> None:
    with pytest.raises(RuntimeError):
        float(torch.ones((), device=META))
    with pytest.raises(RuntimeError):
        torch.ones(3, device=META).addmm_(torch.ones(3, 2), torch.ones(2, 3))


# --- targets that nobody may look at ------------------------------------------------------------------


def test_indices_out_of_range_become_nan_and_others_one_hot_rows() -> None:
    rows = class_rows(torch.tensor([2, -100, 0, 3]), 3, torch.float32)
    assert torch.equal(rows[[0, 2]], torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]))
    assert bool(rows[[1, 3]].isnan().all())


def test_targets_out_of_bounds_become_nan() -> None:
    y = torch.tensor([[0.0, 1.0], [-0.1, 1.1], [math.inf, math.nan]])
    marked = within(y, (0, 1))
    assert torch.equal(marked.isnan(), torch.tensor([[False] * 2, [True] * 2, [True] * 2]))
    assert within(y, resolve_loss("mse").targets) is y
    soft = of_mass(torch.tensor([[0.5, 0.5], [-1.0, 0.5]]))
    assert soft.isnan().tolist() == [[False, False], [True, True]]


def test_values_on_a_device_are_not_checked_but_shapes_are() -> None:
    loss = resolve_loss("cross_entropy")
    loss.check_target((4, 3), torch.float32, torch.zeros(4, dtype=torch.int64, device=META))
    resolve_loss("bce_with_logits").check_target((4, 3), torch.float32, torch.zeros(4, 3).to(META))
    with pytest.raises(gncompile.errors.BatchError):
        loss.check_target((4, 3), torch.float32, torch.zeros(5, dtype=torch.int64, device=META))


# --- which phases are captured, and when --------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "uncaptured"),
    [
        ({}, {"invert"}),
        ({"inverse": "eigen"}, {"invert"}),
        ({"inverse": "newton_schulz"}, set()),
        ({"inverse": "newton_schulz", "method": "kfac"}, set()),
    ],
)
def test_phases_with_factorisations_are_not_captured(
    options: dict[str, Any], uncaptured: set[str]
) -> None:
    """The output factor of ``mse`` is a multiple of the identity, which nothing factorises."""
    traced, loss, _ = understand(plain(), "mse", torch.zeros(2, WIDTH))
    program = step_program(traced.graph, loss, Settings(guarded=True, **options))
    assert uncaptured_phases(program) == uncaptured


def test_roots_of_output_hessians_are_not_captured() -> None:
    coupled = "softplus(z1 - z2) + softplus(z2 - z3) - y1*z1"
    traced, loss, _ = understand(plain(), coupled, torch.zeros(2, WIDTH))
    assert "curvature" in uncaptured_phases(factor_program(traced.graph, loss, "kfac_rp"))


class RecordedGraph:
    """Stands for ``torch.cuda.CUDAGraph``: tells what happens to it."""

    events: list[str]

    def register_generator_state(self, generator: torch.Generator) -> None:
        self.events.append("register")

    def replay(self) -> None:
        self.events.append("replay")


def on_cpu(**options: Any) -> tuple[Executable, Settings]:
    """A guarded step of the torch backend, whatever its settings."""
    traced, loss, _ = understand(plain(), "mse", torch.zeros(2, WIDTH))
    settings = Settings.from_options(guarded=True, **options)
    program = step_program(traced.graph, loss, settings)
    device = torch.device("cpu")
    return Executable(program, traced, loss, dtype=torch.float32, device=device), settings


def recorded(monkeypatch: pytest.MonkeyPatch, executable: Executable) -> tuple[Graphs, list[str]]:
    """Graphs of what is no CUDA device, and the events there."""
    events: list[str] = []
    monkeypatch.setattr(RecordedGraph, "events", events, raising=False)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", RecordedGraph)
    run = Executable.run

    class Capture:
        def __init__(self, graph: object, capture_error_mode: str) -> None: ...

        def __enter__(self) -> None:
            events.append("capture")

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(graphs.torch.cuda, "graph", Capture)

    def noted(self: Executable, *phases: str) -> None:
        events.append(" ".join(phases))
        run(self, *phases)

    monkeypatch.setattr(Executable, "run", noted)
    tested = Graphs(executable)
    tested._captures = True
    return tested, events


def test_a_sequence_is_run_then_captured_then_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the graphs the factorisations are launched one by one; another batch size starts again."""
    executable, _ = on_cpu()
    tested, events = recorded(monkeypatch, executable)
    x, y = normal(torch.Generator().manual_seed(0), 9, WIDTH), torch.zeros(9, OUTPUTS)
    seen = []
    for rows in (9, 9, 9, 5):
        executable.load((x[:rows],), y[:rows])
        tested.run(("gradient", "guard", "invert", "direction"))
        seen.append(list(events))
        events.clear()
    parts = ["gradient guard", "invert", "direction"]
    capture = ["register", "capture"]
    assert seen[0] == seen[3] == parts
    assert seen[1] == [*capture, parts[0], "replay", "invert", *capture, parts[2], "replay"]
    assert seen[2] == ["replay", "invert", "replay"]


def test_a_graph_needs_no_generator_for_philox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its state is in device memory, where the graph itself counts on."""
    executable, _ = on_cpu()
    executable.memory.draws = PhiloxDraws(0, torch.device("cpu"))
    tested, events = recorded(monkeypatch, executable)
    executable.load((torch.zeros(5, WIDTH),), torch.zeros(5, OUTPUTS))
    for _ in range(2):
        tested.run(("gradient",))
    assert events == ["gradient", "capture", "gradient", "replay"]


@pytest.mark.parametrize(("inverse", "inverted"), [("cholesky", 4), ("newton_schulz", 0)])
def test_without_factorisations_the_whole_step_is_one_graph(
    inverse: str, inverted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one that tries three γ and checks ρ, with an inversion for each γ and one for the best."""
    executable, settings = on_cpu(inverse=inverse, factor_damping_period=4, damping_period=5)
    tested, events = recorded(monkeypatch, executable)
    x, y = normal(torch.Generator().manual_seed(0), 9, WIDTH), torch.zeros(9, OUTPUTS)
    executable.load((x,), y)
    phases = plan(executable.program.step, due(settings, updates=4, since_refresh=0))
    for _ in range(3):
        events.clear()
        tested.run(phases)
    assert phases.count("invert") == 4
    assert events.count("invert") == inverted
    assert events.count("replay") == inverted + 1


def test_a_resumed_trainer_keeps_its_precision(tmp_path: Path) -> None:
    trainer = gncompile.compile(plain(), "mse", torch.zeros(2, WIDTH), precision="high")
    trainer.save(tmp_path / "saved")
    assert trainer.resume(tmp_path / "saved", plain()).precision == "high"
