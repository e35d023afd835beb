"""A trainer's state: everything a step reads or writes, taken, given, and given to an independent copy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..errors import GncompileError, message
from . import checkpoint

if TYPE_CHECKING:
    from .trainer import Trainer

COUNTERS = ("updates", "_rejected", "_held", "_since_refresh", "_unconfirmed")
"""The trainer's own numbers between steps."""


def state_dict(trainer: Trainer) -> dict[str, Any]:
    """Everything a step reads or writes: groups of tensors by name (not copied), and plain numbers.

    ``"model"`` holds the reported parameters, ``"latest"`` those that training goes on from, if others.
    """
    trainer.ready()
    memory, first_order = trainer._executable.memory, trainer._first_order
    reported, latest = trainer._reported.tensors()
    return {
        "model": {**checkpoint.model_tensors(trainer.model), **reported},
        "latest": latest,
        "states": dict(memory.states),
        "optimiser": first_order.state_dict() if first_order else {},
        "generator": memory.draws.state_dict(),
        "counters": {name: getattr(trainer, name) for name in COUNTERS},
        "place": trainer.place.state_dict(),
    }


def load_state_dict(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Continue where ``state`` was taken; the model then holds the reported parameters, as after ``finish``.

    :class:`~gncompile.errors.CheckpointError`, and nothing is changed, if it is another model's. Random draws
    start again from the seed where the state is that of another kind of generator: of the Triton backend for
    any other, or of torch's on another device.
    """
    checkpoint.check_state(trainer, state)
    trainer._journal.surely(partial(_load, trainer, state))
    trainer.finish()


def _load(trainer: Trainer, state: Mapping[str, Any]) -> None:
    memory = trainer._executable.memory
    latest = {**state["model"], **state.get("latest", {})}
    trainer._reported.forget()
    checkpoint.copy_tensors(checkpoint.model_tensors(trainer.model), latest)
    checkpoint.copy_tensors(memory.states, {**memory.initial_scalars(), **state["states"]})
    if trainer._first_order:
        trainer._first_order.load_state_dict(state["optimiser"])
    memory.draws.load_state_dict(state["generator"])
    for name in COUNTERS:
        setattr(trainer, name, state["counters"].get(name, 0))
    trainer._wanted = 0, 0
    trainer.place.load_state_dict(state["place"])


def independent(trainer: Trainer, memo: dict[int, Any]) -> Trainer:
    """``copy.deepcopy``: a trainer of a copied model, compiled anew, in the same state."""
    from ..app.compile import compile_into

    trainer.ready()
    memory, model = trainer._executable.memory, trainer.model
    if "_modules" not in vars(memo.get(id(model), model)):
        raise GncompileError(
            message(
                "the model that is being copied holds its own trainer",
                where=f"an attribute of {type(model).__name__}",
                instead="copy the trainer instead, copy.deepcopy(trainer), and take the copy's .model",
            )
        )
    new: Trainer = type(trainer).__new__(type(trainer))
    memo[id(trainer)] = new
    loss = trainer._identity.loss
    compile_into(
        new,
        copy.deepcopy(model, memo),
        trainer.loss_function if loss is None else copy.deepcopy(loss, memo),
        tuple(
            torch.zeros(2, *node.shape, dtype=memory.dtype, device=memory.device)
            for node in trainer.traced.graph.inputs
        ),
        seed=memory.draws.seed,
        backend=trainer.backend,
        precision=trainer.precision,
        tune=dict(trainer.variants) or "off",
        **vars(trainer.settings),
    )
    load_state_dict(new, state_dict(trainer))
    new.gathers = trainer.gathers
    if not trainer._reported.shows:
        new._reported.hide()
    return new
