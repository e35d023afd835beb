"""Checkpoints: one safetensors file with everything a training needs to go on bit for bit.

The tensors are the model's parameters and buffers, the program's states, the first-order optimiser's
state, and the generator's; names read ``model/0.weight``. The parameters are the reported ones, those that
``evaluate`` speaks of; where training goes on from others, these stand beside them as ``latest/…``, and
those of the best validation of a fit that keeps them as ``best/…``. The JSON beside them has settings, loss,
input shapes, counters, the place in the data's order, and the fingerprint of the model.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import nn

from ..base.handed_down import handed_down
from ..base.version import __version__
from ..errors import CheckpointError, GncompileError
from ..frontends.standardised import Standardised
from ..graph.embedding import is_whole
from ..losses.standardising import standardised
from .compiled import Compiled
from .fingerprint import Fingerprint, differences, graph_lines, shape_differences
from .model_identity import in_modes
from .sealed_file import read_sealed, write_sealed
from .state import GROUPS, Tensors, copy_tensors, frozen_changed, model_tensors, require_same
from .stored_loss import loss_to_data
from .stored_settings import settings_from_data, stored_loss

SCALES = ("input_mean", "input_scale", "output_mean", "output_scale")
"""The buffers of a :class:`Standardised`, in order."""
FORMAT = 2
READ = (1, 2)
"""Formats that are read; in the first ``model/…`` held the latest parameters, and nothing the reported."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A read checkpoint: a trainer's ``state_dict`` and how to rebuild the trainer."""

    path: Path
    state: dict[str, Any]
    about: dict[str, Any]


def save(compiled: Compiled, state: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a trainer's ``state_dict``, and how to rebuild it, to ``path``; see :meth:`Trainer.save`.

    Of many processes, which have the same, the first writes it.
    """
    if compiled.leads:
        numbers = {key: value for key, value in state.items() if key not in GROUPS}
        write_sealed(path, {**_about(compiled), "numbers": numbers}, _flat(state))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint; :class:`CheckpointError` if it is missing, damaged, or not one of ours."""
    path = Path(path)

    def content(about: dict[str, Any], tensors: Tensors) -> Checkpoint:
        if type(about["format"]) is not int:
            raise ValueError(f"its format is {about['format']!r:.100}")
        if about["format"] not in READ:
            raise CheckpointError(
                f"the checkpoint has format {about['format']}, this is gncompile {__version__}",
                where=str(path),
                instead=f"use gncompile {about.get('version', 'of the version that wrote it')}",
            )
        if unknown := {name.partition("/")[0] for name in tensors} - {*GROUPS}:
            raise ValueError(f"tensors of an unknown group {sorted(unknown)[0]!r}")
        _require_kinds(about)
        return Checkpoint(path, _grouped(tensors) | about["numbers"], about)

    return read_sealed(path, "checkpoint", content, "use an older checkpoint, or start again")


KINDS = {
    "settings": dict, "loss": dict, "inputs": list, "backend": str, "fingerprint": dict, "numbers": dict,
}  # fmt: skip
"""What a header's fields are; what is in them is checked where they are used."""


MOST_INPUTS, MOST_DIMENSIONS = 100, 16
MOST_FEATURES = 10**12
"""Of one sample; what the model takes is compared without allocating as much."""


def _require_kinds(about: Mapping[str, Any]) -> None:
    for name, kind in KINDS.items():
        if not isinstance(about[name], kind):
            raise TypeError(f"{name} is no {kind.__name__}")
    if not 0 < len(about["inputs"]) <= MOST_INPUTS:
        raise TypeError(f"inputs are {len(about['inputs'])}")
    wholes = _wholes(about)
    if len(wholes) != len(about["inputs"]) or not all(type(each) is bool for each in wholes):
        raise TypeError("whole does not tell of each input whether it is of whole numbers")
    for shape in about["inputs"]:
        whole = isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
        if not whole or len(shape) > MOST_DIMENSIONS or math.prod(shape) > MOST_FEATURES:
            raise TypeError(f"inputs has the shape {repr(shape)[:100]}")
    shapes, graph = (about["fingerprint"].get(key) for key in ("trained parameters", "graph"))
    if not isinstance(shapes, dict) or not isinstance(graph, list):
        raise TypeError("fingerprint does not tell parameters and graph")
    for name in ("counters", "place"):
        if not isinstance(about["numbers"].get(name), dict):
            raise TypeError(f"{name} is no dict")


def _wholes(about: Mapping[str, Any]) -> list[bool]:
    """Of each input whether it is of whole numbers, which older checkpoints do not tell."""
    return list(about.get("whole", [False] * len(about["inputs"])))


class Resumed(Protocol):
    """A trainer that a state can be loaded into."""

    compiled: Compiled
    gathers: bool

    def state_dict(self) -> dict[str, Any]:
        """Everything a step reads or writes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken."""


T = TypeVar("T", bound=Resumed)


def _compiled(kind: type[T], *arguments: Any, **options: Any) -> T:
    """A trainer of this class, compiled anew."""
    made: T = handed_down("compile_into")(kind.__new__(kind), *arguments, **options)
    return made


def in_memory(trainer: Resumed) -> dict[str, Any]:
    """What :func:`save` writes to a file, as dictionaries of copied tensors and plain values."""
    state = {
        key: {name: t.detach().clone() for name, t in part.items()} if key in GROUPS else part
        for key, part in trainer.state_dict().items()
    }
    return {**state, "about": _about(trainer.compiled)}


def from_memory(state: Mapping[str, Any], where: str) -> Checkpoint:
    """The checkpoint that :func:`in_memory` gave; :class:`CheckpointError` if it is none."""
    try:
        about = dict(state["about"])
        if about["format"] not in READ:
            raise ValueError(f"its format is {about['format']}")
        _require_kinds({**about, "numbers": {key: state[key] for key in ("counters", "place")}})
        for group in GROUPS:
            named = state[group].items()
            if not all(type(name) is str and isinstance(t, torch.Tensor) for name, t in named):
                raise TypeError(f"{group} holds something else than tensors")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"this is no state of a compiled training: {type(error).__name__}: {error}",
            where=where,
            instead="pass what state_dict() returned, as it was",
        ) from error
    return Checkpoint(Path(where), dict(state), about)


def resume(
    path: str | os.PathLike[str], model: nn.Module, loss: object, kind: type[T], **place: object
) -> T:
    """The trainer saved at ``path``, of the class ``kind``; see :meth:`Trainer.resume`."""
    return restored(load(path), model, loss, kind, **place)


def restored(
    checkpoint: Checkpoint, model: nn.Module, loss: object, kind: type[T], **place: object
) -> T:
    """A trainer of the class ``kind`` compiled anew for ``model``, in the state of a checkpoint.

    ``place`` is what ``compile`` takes and no checkpoint tells, the ``process_group``.
    A model that was standardised by ``compile`` may be given as it was given there.
    """
    if checkpoint.about.get("standardised") and not isinstance(model, Standardised):
        scales = [checkpoint.state["model"].get(name, torch.empty(0)) for name in SCALES]
        model = Standardised(model, *scales)
        if loss is not None and not bool((model.output_scale == 1).all()):
            loss = standardised(loss, model.output_scale)
    given = {name: list(t.shape) for name, t in model_tensors(model).items()}
    stored = {name: list(t.shape) for name, t in checkpoint.state["model"].items()}
    require_same(shape_differences(given, stored), checkpoint.path)

    def rebuilt() -> T:
        about = checkpoint.about
        parameter = next(model.parameters())
        inputs = zip(about["inputs"], _wholes(about), strict=True)
        examples = tuple(_zeros(*each, parameter.dtype, parameter.device) for each in inputs)
        settings = settings_from_data(about, checkpoint.path)
        wanted = stored_loss(about, checkpoint.path) if loss is None else loss
        return _compiled(kind, model, wanted, examples, **settings, **place)

    trainer = rebuilt()
    found = differences(fingerprint(trainer.compiled), checkpoint.about["fingerprint"])
    require_same(found, checkpoint.path)
    if frozen_changed(trainer.compiled, checkpoint.state["model"]):
        # What is not trained is compiled in, so it has to be in place before.
        copy_tensors(model_tensors(model), checkpoint.state["model"])
        trainer = rebuilt()
    trainer.load_state_dict(checkpoint.state)
    return trainer


def _zeros(
    shape: Sequence[int], whole: bool, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """An example of an input for compiling: two samples, of whole numbers where the model takes these."""
    zero = torch.zeros((), dtype=torch.long if whole else dtype, device=device)
    return zero.expand(2, *shape)


def copied(trainer: T, memo: dict[int, Any]) -> T:
    """A trainer of a copied model, compiled anew, in the same state, for ``copy.deepcopy``."""
    compiled = trainer.compiled
    model, loss = compiled.model, compiled.identity.loss
    if "_modules" not in vars(memo.get(id(model), model)):
        raise GncompileError(
            "the model that is being copied holds its own trainer",
            where=f"an attribute of {type(model).__name__}",
            instead="copy the trainer instead, copy.deepcopy(trainer), and take the copy's .model",
        )
    executable, memory = compiled.executable, compiled.executable.memory
    new = memo[id(trainer)] = type(trainer).__new__(type(trainer))
    twin = copy.deepcopy(model, memo)
    with in_modes(twin, compiled.identity.modes):  # with dropout, if this one was compiled with it
        handed_down("compile_into")(
            new,
            twin,
            compiled.loss if loss is None else copy.deepcopy(loss, memo),
            tuple(
                _zeros(node.shape, is_whole(node.op), memory.dtype, memory.device)
                for node in compiled.traced.inputs
            ),
            seed=memory.draws.seed,
            backend=executable.backend,
            precision=memory.precision,
            tune=dict(executable.variants) or "off",
            process_group=executable.processes.group if executable.processes else False,
            **vars(compiled.settings),
        )
    new.load_state_dict(trainer.state_dict())
    new.gathers = trainer.gathers
    return new


def _about(compiled: Compiled) -> dict[str, Any]:
    """How to rebuild the trainer, and what has to agree."""
    executable = compiled.executable
    return {
        "format": FORMAT,
        "version": __version__,
        "settings": dataclasses.asdict(compiled.settings),
        "loss": loss_to_data(compiled.loss),
        "inputs": [list(node.shape) for node in compiled.traced.inputs],
        "whole": [is_whole(node.op) for node in compiled.traced.inputs],
        "backend": executable.backend,
        "precision": executable.memory.precision,
        "variants": {name: dict(options) for name, options in executable.variants.items()},
        "standardised": isinstance(compiled.model, Standardised),
        "fingerprint": fingerprint(compiled),
    }


def fingerprint(compiled: Compiled) -> Fingerprint:
    """Everything about a trainer that has to be the same for its state to fit another one."""
    methods = compiled.program.methods  # by layer, however they were chosen
    used = set(methods.values()) or {str(compiled.settings.method)}
    return {
        "method": methods if len(used) > 1 else used.pop(),
        "dtype": str(compiled.executable.memory.dtype),
        "loss": compiled.loss.describe(),
        "trained parameters": {name: list(p.shape) for name, p in compiled.trained().items()},
        "graph": graph_lines(compiled.traced.graph),
    }


# --- Between a state and a file -------------------------------------------------------------------------


def _flat(state: Mapping[str, Any]) -> Tensors:
    """The tensors of all groups as ``group/name``."""
    return {f"{group}/{name}": tensor for group in GROUPS for name, tensor in state[group].items()}


def _grouped(tensors: Tensors) -> dict[str, Any]:
    """The inverse of :func:`_flat`."""
    state: dict[str, Any] = {group: {} for group in GROUPS}
    for path, tensor in tensors.items():
        group, _, name = path.partition("/")
        state[group][name] = tensor
    return state
