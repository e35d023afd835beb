"""Models that torch has wrapped for many processes are refused with what to pass instead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gncompile
from gncompile.errors import CompileError


class FSDPModule:
    """What ``fully_shard`` lets a module's class derive from."""


class Sharded(FSDPModule, nn.Linear):
    """A layer as ``fully_shard`` leaves it."""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.DataParallel(nn.Linear(4, 2)), "the model is wrapped in DataParallel"),
        (
            nn.Sequential(nn.Linear(4, 3), Sharded(3, 2)),
            "sharded by FSDP\n  where:      module '1'",
        ),
    ],
)
def test_wrapped_models_are_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(CompileError) as told:
        gncompile.compile(model, "mse", torch.zeros(1, 4))
    assert said in str(told.value)
    assert "what to do: pass the module" in str(told.value)
