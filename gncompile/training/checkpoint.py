"""Checkpoints: one safetensors file with everything a training needs to go on bit for bit.

The tensors are the model's parameters and buffers, the program's states, the first-order optimiser's
state, and the generator's; names read ``model/0.weight``. The parameters are the reported ones, those that
``evaluate`` speaks of; where training goes on from others, these stand beside them as ``latest/…``. The
header's text field holds JSON: settings, loss, input shapes, counters, the place in the data's order, and
the fingerprint of the model. One file, because one rename replaces it atomically; a digest over all of it, so
that damage is seen. Nothing in it is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..base.files import atomic_path
from ..errors import CheckpointError, expected_got, message
from .fingerprint import differences, fingerprint, shape_differences
from .stored_loss import loss_to_data
from .stored_settings import settings_from_data, stored_loss

if TYPE_CHECKING:
    from .trainer import Trainer

FORMAT = 2
READ = (1, 2)
"""Formats that are read; in the first ``model/…`` held the latest parameters, and nothing the reported."""
GROUPS = ("model", "latest", "states", "optimiser", "generator")
"""The parts of a trainer's ``state_dict`` that map names to tensors; the others are plain numbers."""
SHOWN = 5
"""Differences an error lists."""

Tensors = dict[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A read checkpoint: a trainer's ``state_dict`` and how to rebuild the trainer."""

    path: Path
    state: dict[str, Any]
    about: dict[str, Any]


def save(trainer: Trainer, path: str | os.PathLike[str]) -> None:
    """Write ``trainer`` to the file ``path``, replacing an older checkpoint in one step.

    Cost: a copy of the model, the factors and their inverses in memory and on disk.
    """
    from safetensors.torch import save_file

    state = trainer.state_dict()
    # Clones, because safetensors refuses tensors that share memory.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in _flat(state).items()
    }
    numbers = {key: value for key, value in state.items() if key not in GROUPS}
    about = json.dumps({**_about(trainer), "numbers": numbers})
    header = {"gncompile": about, "digest": _digest(about, tensors)}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=header)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint; :class:`CheckpointError` if it is missing, damaged, or not one of ours."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise CheckpointError(message(f"no checkpoint {str(path)!r}", instead="check the path"))
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = header["gncompile"]
        if header["digest"] != _digest(text, tensors):
            raise ValueError("its content does not match its digest")
        if unknown := {name.partition("/")[0] for name in tensors} - {*GROUPS}:
            raise ValueError(f"tensors of an unknown group {sorted(unknown)[0]!r}")
        about = json.loads(text)
        known = about["format"] in READ
        if known:
            _require_kinds(about)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        found = (
            f"{error.__class__.__name__}: {error}" if isinstance(error, KeyError) else str(error)
        )
        raise CheckpointError(
            message(
                f"the checkpoint is damaged, or not one of gncompile's: {found}",
                where=str(path),
                instead="use an older checkpoint, or start again",
            )
        ) from error
    if not known:
        raise CheckpointError(
            message(
                f"the checkpoint has format {about['format']}, this is gncompile {__version__}",
                where=str(path),
                instead=f"use gncompile {about.get('version', 'of the version that wrote it')}",
            )
        )
    return Checkpoint(path, _grouped(tensors) | about["numbers"], about)


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
    if len(about["inputs"]) > MOST_INPUTS:
        raise TypeError(f"inputs are {len(about['inputs'])}")
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


def resume(path: str | os.PathLike[str], model: nn.Module, loss: object = None) -> Trainer:
    """The trainer saved at ``path``, compiled anew for ``model``, which gets the saved parameters.

    ``model`` is a module of the same architecture; its present parameters do not matter, and it then
    holds the reported ones, as after ``fit``. ``loss`` is only needed to insist on one. The same backend,
    settings, generator and place in the data's order are restored, so that training goes on bit for bit
    on the same machine with as many threads. Raises :class:`CheckpointError` for a checkpoint of another
    model; ``model`` is unchanged then.
    """
    checkpoint = load(path)
    given = {name: list(t.shape) for name, t in model_tensors(model).items()}
    stored = {name: list(t.shape) for name, t in checkpoint.state["model"].items()}
    _require_same(shape_differences(given, stored), checkpoint.path)
    trainer = _compile(checkpoint, model, loss)
    _require_same(
        differences(fingerprint(trainer), checkpoint.about["fingerprint"]), checkpoint.path
    )
    if _frozen_changed(trainer, checkpoint.state["model"]):
        # What is not trained is compiled in, so it has to be in place before.
        copy_tensors(model_tensors(model), checkpoint.state["model"])
        trainer = _compile(checkpoint, model, loss)
    trainer.load_state_dict(checkpoint.state)
    return trainer


def _compile(checkpoint: Checkpoint, model: nn.Module, loss: object) -> Trainer:
    from ..app.compile import compile as compile_model

    about = checkpoint.about
    parameter = next(model.parameters())
    examples = [
        torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand(2, *shape)
        for shape in about["inputs"]
    ]
    settings = settings_from_data(about, checkpoint.path)
    return compile_model(
        model,
        stored_loss(about, checkpoint.path) if loss is None else loss,  # type: ignore[arg-type]
        tuple(examples),
        **settings,
    )


def _about(trainer: Trainer) -> dict[str, Any]:
    """How to rebuild the trainer, and what has to agree."""
    return {
        "format": FORMAT,
        "version": __version__,
        "settings": dataclasses.asdict(trainer.settings),
        "loss": loss_to_data(trainer.loss_function),
        "inputs": [list(node.shape) for node in trainer.traced.graph.inputs],
        "backend": trainer.backend,
        "precision": trainer.precision,
        "variants": {name: dict(options) for name, options in trainer.variants.items()},
        "fingerprint": fingerprint(trainer),
    }


# --- States -------------------------------------------------------------------------------------------


def model_tensors(model: nn.Module) -> Tensors:
    """All parameters and buffers by name, as data."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def check_state(trainer: Trainer, state: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` unless every tensor of ``state`` has its place in the trainer.

    A number that the state of an older version does not have begins anew.
    """
    mine = trainer.state_dict()
    known = state.get("states", {})
    mine["states"] = {name: t for name, t in mine["states"].items() if t.dim() or name in known}
    found = []
    groups = ["model", "states"] + ["latest"] * bool(state.get("latest"))
    mine = {**mine, "latest": trainer.trained()}
    for group in groups:  # a generator of another kind starts again from the seed
        expected, got = (
            {f"{group} {name}": [*t.shape, str(t.dtype)] for name, t in tensors.items()}
            for tensors in (mine[group], state.get(group, {}))
        )
        found += shape_differences(expected, got)
    _require_same(found, None)
    _check_optimiser(trainer, state.get("optimiser", {}))
    _check_generator(state.get("generator", {}), mine["generator"])
    _check_numbers(state)
    changed = _frozen_changed(trainer, state["model"])
    if changed:
        raise CheckpointError(
            message(
                f"the state has other values of {', '.join(changed[:SHOWN])}, "
                "which are not trained but compiled in",
                where="load_state_dict",
                instead="use Trainer.resume, or compile after loading them into the model",
            )
        )


OWN_STATES = ("last_good", "step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What torch's Adam and SGD, and ``first_order.py``, keep of a parameter."""


def _check_optimiser(trainer: Trainer, stored: Tensors) -> None:
    """A first-order optimiser's tensors: shaped like the parameters, and the same of all of them."""
    own = trainer.state_dict()["optimiser"]
    trained = trainer.trained() if own else {}
    kept: dict[str, set[str]] = {name: set() for name in trained}
    found = []
    for path, tensor in stored.items():
        key, _, name = path.partition("/")
        fits = key in OWN_STATES and name in trained
        shape = [] if key == "step" else list(trained[name].shape) if fits else "not there"
        if not fits or shape != list(tensor.shape) or not tensor.is_floating_point():
            found.append(f"optimiser {path}\n{expected_got(shape, list(tensor.shape))}")
        else:
            kept[name].add(key)
    every = set().union(*kept.values(), {"last_good"})
    found += [
        f"optimiser {key}/{name}\n{expected_got('a tensor', 'not there')}"
        for name, keys in kept.items()
        for key in sorted(every - keys)
    ]
    _require_same(found, None)


def _check_generator(stored: Tensors, mine: Tensors) -> None:
    """The state of a generator of the same kind is one that it takes."""
    for name, tensor in stored.items():
        same = name in mine and tensor.shape == mine[name].shape
        if same and tensor.dtype != mine[name].dtype:
            _require_same([f"generator\n{expected_got(mine[name].dtype, tensor.dtype)}"], None)
        if same and name == "state" and len(tensor) == len(torch.Generator().get_state()):
            try:
                torch.Generator().set_state(tensor.cpu())
            except RuntimeError as error:
                _require_same([f"generator: {error}"], None)


def _check_numbers(state: Mapping[str, Any]) -> None:
    """Counters are whole numbers, and the place is one of a fit."""
    counters, place = state.get("counters", {}), state.get("place", {})
    whole = ("updates", "_rejected", "_held", "_since_refresh")
    kinds: dict[str, type] = {**dict.fromkeys(whole, int), "_unconfirmed": bool}
    counters = {"_held": 0, **counters}  # which older versions do not have
    found = [
        f"counter {name}\n{expected_got(kind.__name__, repr(counters.get(name))[:80])}"
        for name, kind in kinds.items()
        if type(counters.get(name)) is not kind or not 0 <= counters[name] < 1 << 63
    ]
    best, waited = place.get("best"), place.get("waited", 0)
    if not isinstance(best, float | int | None) or type(waited) is not int:
        found.append(f"place\n{expected_got('a best loss and a number of validations', place)}")
    if not isinstance(place.get("batches"), dict | None):
        found.append(f"batches\n{expected_got('the state of a Batches', place['batches'])}")
    _require_same(found, None)


def copy_tensors(into: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy tensors by name, in place."""
    for name, tensor in into.items():
        tensor.copy_(given[name])


def _frozen_changed(trainer: Trainer, stored: Mapping[str, Tensor]) -> list[str]:
    """Names of parameters and buffers that are not trained and differ from the stored ones."""
    trained = trainer.trained()
    return [
        name
        for name, tensor in model_tensors(trainer.model).items()
        if name not in trained and not torch.equal(tensor.cpu(), stored[name].cpu())
    ]


def _require_same(found: list[str], path: Path | None) -> None:
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise CheckpointError(
            message(
                "\n".join(["the checkpoint belongs to another model", *found[:SHOWN], *more]),
                where=str(path) if path else "load_state_dict",
                instead="give the model, loss and method that it was saved with ('expected' is yours)",
            )
        )


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


def _digest(about: str, tensors: Tensors) -> str:
    digest = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
