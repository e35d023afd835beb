"""Modules that torch has wrapped for many processes: what to pass instead."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from ..errors import CompileError

SHARDED = ("FullyShardedDataParallel", "FSDPModule")
"""The wrapper, and what ``fully_shard`` lets a module's class derive from."""


def require_unwrapped(model: nn.Module) -> None:
    """Raise :class:`~gncompile.errors.CompileError` for a model that is wrapped or sharded.

    FSDP's classes are known by name: importing them takes long.
    """
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else None
        if isinstance(module, DistributedDataParallel | DataParallel):
            raise CompileError(
                f"the model is wrapped in {type(module).__name__}",
                where=where,
                instead="pass the module itself, model.module, on every process: a compiled step adds up "
                "what the processes have of a batch, gradients and factors alike",
            )
        if any(kind.__name__ in SHARDED for kind in type(module).__mro__):
            raise CompileError(
                "the model's parameters are sharded by FSDP",
                where=where,
                instead="pass the module as it is before it is sharded, on every process: the factors of a "
                "layer need its whole weight",
            )
