"""Memory is asked for before it is taken: states at compile, work buffers at a batch, any list of sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gncompile
from gncompile.base import memory_budget
from gncompile.base.memory_budget import available_bytes, require_memory
from gncompile.errors import BatchError, CompileError, DataError

resource = pytest.importorskip("resource")


def net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def test_what_is_refused_is_listed_by_size() -> None:
    with pytest.raises(DataError, match="the arrays need 1.0 TiB") as caught:
        require_memory({"small": 7, "big": 1 << 40}, "the arrays", where="x.npz", error=DataError)
    lines = str(caught.value).splitlines()
    assert [line.split()[-1] for line in lines[1:3]] == ["big", "small"]
    assert "x.npz" in lines[3]


def test_what_is_held_is_not_asked_for_again() -> None:
    free = available_bytes()
    require_memory(free + 1, "buffers", held=free)
    with pytest.raises(CompileError):
        require_memory(4 * free, "buffers", held=free)


def test_the_limit_of_the_address_space_counts() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    unlimited = available_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 38, before[1]))
        assert available_bytes() <= min(unlimited, 1 << 38)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_factors_too_large_are_refused_before_any_is_allocated() -> None:
    with pytest.raises(CompileError, match=r"state Q\.2 \[200001, 200001\]"):
        gncompile.compile(net(200_000), "mse", torch.zeros(2, 3), tune="off")


def test_states_fit_or_are_refused_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = gncompile.compile(net(64), "mse", torch.zeros(2, 3), tune="off")
    kept = sum(state.numel() * 4 for state in trainer._executable.memory.states.values())
    monkeypatch.setattr(memory_budget, "available_bytes", lambda device=None: kept - 1)
    with pytest.raises(CompileError, match="the states and work buffers of a step need"):
        gncompile.compile(net(64), "mse", torch.zeros(2, 3), tune="off")


def test_a_batch_too_large_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(64)
    trainer = gncompile.compile(model, "mse", torch.zeros(2, 3), tune="off")
    before = [p.clone() for p in model.parameters()]
    monkeypatch.setattr(memory_budget, "available_bytes", lambda device=None: 1 << 20)
    with pytest.raises(BatchError, match="work buffers of a batch of 100000 samples"):
        trainer.step(torch.ones(100_000, 3), torch.ones(100_000, 1))
    assert all(map(torch.equal, before, model.parameters()))
    trainer.step(torch.ones(100, 3), torch.ones(100, 1))
