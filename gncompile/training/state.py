"""A trainer's state: everything a step reads or writes, taken, checked and given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, expected_got
from .compiled import Compiled
from .counters import Counters
from .fingerprint import shape_differences
from .first_order import FirstOrder
from .place import Place
from .reported import Reported

GROUPS = ("model", "latest", "best", "states", "optimiser", "generator")
"""The parts of a trainer's ``state_dict`` that map names to tensors; the others are plain numbers."""
SHOWN = 5
"""Differences an error lists."""


Tensors = dict[str, Tensor]


class State:
    """The tensors and numbers of one trainer that are another's after ``load_state_dict``."""

    def __init__(
        self,
        compiled: Compiled,
        count: Counters,
        place: Place,
        reported: Reported,
        first_order: FirstOrder | None,
    ) -> None:
        self._compiled, self._count, self._place = compiled, count, place
        self._reported, self._first_order = reported, first_order

    def state_dict(self, here: bool = True) -> dict[str, Any]:
        """See :meth:`Trainer.state_dict`; what other processes keep is there if it is wanted ``here``."""
        memory, kept = self._compiled.executable.memory, self._compiled.program.kept
        if not self._count.updates:  # they are as they begin
            begun = {key: memory.initial(state) for key, (_, state) in kept.items()}
            return self._with({**begun, **memory.states})
        return self._with(memory.whole_states(kept, here))

    def _with(self, states: Tensors) -> dict[str, Any]:
        """The state with these states of the program."""
        memory, first_order = self._compiled.executable.memory, self._first_order
        reported, latest = self._reported.tensors()
        return {
            "model": {**model_tensors(self._compiled.model), **reported},
            "latest": latest,
            "best": dict(self._place.best.parameters),
            "states": states,
            "optimiser": first_order.state_dict() if first_order else {},
            "generator": memory.draws.state_dict(),
            "counters": self._count.state_dict(),
            "place": self._place.state_dict(),
        }

    def load_state_dict(
        self, state: Mapping[str, Any], surely: Callable[[Callable[[], None]], None]
    ) -> None:
        """See :meth:`Trainer.load_state_dict`; ``surely`` runs what copies, and again if interrupted."""
        self._check(state)
        surely(lambda: self._load(state))

    def _load(self, state: Mapping[str, Any]) -> None:
        memory = self._compiled.executable.memory
        latest = {**state["model"], **state.get("latest", {})}
        self._reported.forget()
        # What is not trained and has its values is left: a buffer that is written has the model traced again.
        changed = {*self._compiled.trained(), *frozen_changed(self._compiled, state["model"])}
        model = model_tensors(self._compiled.model)
        copy_tensors({name: t for name, t in model.items() if name in changed}, latest)
        copy_tensors(memory.states, {**memory.initial_scalars(), **state["states"]})
        if self._first_order:
            self._first_order.load_state_dict(state["optimiser"])
        memory.draws.load_state_dict(state["generator"])
        self._count.load_state_dict(state["counters"])
        trained = self._compiled.trained()
        best = {name: t.to(trained[name], copy=True) for name, t in state.get("best", {}).items()}
        self._place.load_state_dict(state["place"], best)
        if best and all(
            torch.equal(best[name], state["model"][name].to(best[name])) for name in best
        ):
            self._reported.choose(best)  # what was reported is what is

    # --- What a step changes besides tensors ------------------------------------------------------------

    def numbers(self) -> dict[str, Any]:
        """The numbers that a step changes."""
        begun = self._first_order.begun if self._first_order else True
        return {
            "counters": self._count.state_dict(), "position": self._place.position, "begun": begun
        }  # fmt: skip

    def restore(self, numbers: Mapping[str, Any]) -> None:
        """Take back what :meth:`numbers` gave."""
        self._count.load_state_dict(numbers["counters"])
        self._place.position = numbers["position"]
        if self._first_order and not numbers["begun"]:
            self._first_order.restart()

    def _check(self, state: Mapping[str, Any]) -> None:
        """Raise :class:`CheckpointError` unless every tensor of ``state`` has its place here.

        A number that the state of an older version does not have begins anew.
        """
        known, found = state.get("states", {}), list[str]()
        memory, kept = self._compiled.executable.memory, self._compiled.program.kept
        elsewhere = {key: memory.initial(each, "meta") for key, (_, each) in kept.items()}
        states = {**elsewhere, **memory.states}
        mine = self._with({name: t for name, t in states.items() if t.dim() or name in known})
        mine["latest"] = mine["best"] = self._compiled.trained()
        groups = ["model", "states", *(name for name in ("latest", "best") if state.get(name))]
        for group in groups:  # a generator of another kind starts again from the seed
            expected, got = (
                {f"{group} {name}": [*t.shape, str(t.dtype)] for name, t in tensors.items()}
                for tensors in (mine[group], state.get(group, {}))
            )
            found += shape_differences(expected, got)
        require_same(found)
        trained = self._compiled.trained() if mine["optimiser"] else {}
        _check_optimiser(trained, state.get("optimiser", {}))
        _check_generator(state.get("generator", {}), mine["generator"])
        _check_numbers(state)
        changed = frozen_changed(self._compiled, state["model"])
        if changed:
            raise CheckpointError(
                f"the state has other values of {', '.join(changed[:SHOWN])}, "
                "which are not trained but compiled in",
                where="load_state_dict",
                instead="use Trainer.resume, or compile after loading them into the model",
            )


def model_tensors(model: nn.Module) -> Tensors:
    """All parameters and buffers by name, as data."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


OWN_STATES = ("last_good", "step", "exp_avg", "exp_avg_sq", "momentum_buffer")
"""What torch's Adam and SGD, and ``first_order.py``, keep of a parameter."""


def _check_optimiser(trained: Tensors, stored: Tensors) -> None:
    """A first-order optimiser's tensors: shaped like the parameters, and the same of all of them."""
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
    require_same(found)


def _check_generator(stored: Tensors, mine: Tensors) -> None:
    """The state of a generator of the same kind is one that it takes."""
    for name, tensor in stored.items():
        same = name in mine and tensor.shape == mine[name].shape
        if same and tensor.dtype != mine[name].dtype:
            require_same([f"generator\n{expected_got(mine[name].dtype, tensor.dtype)}"])
        if same and name == "state" and len(tensor) == len(torch.Generator().get_state()):
            try:
                torch.Generator().set_state(tensor.cpu())
            except RuntimeError as error:
                require_same([f"generator: {error}"])


def _check_numbers(state: Mapping[str, Any]) -> None:
    """Counters are whole numbers, and the place is one of a fit."""
    counters, place = state.get("counters", {}), state.get("place", {})
    kinds = {name: type(number) for name, number in Counters().state_dict().items()}
    counters = {"_held": 0, **counters}  # which older versions do not have
    found = [
        f"counter {name}\n{expected_got(kind.__name__, repr(counters.get(name))[:80])}"
        for name, kind in kinds.items()
        if type(counters.get(name)) is not kind or not 0 <= counters[name] < 1 << 63
    ]
    values = [place.get(name) for name in ("best", "bar")]
    known = all(value is None or type(value) in (float, int) for value in values)
    known &= isinstance(place.get("monitor", ""), str)
    if not known or type(place.get("waited", 0)) is not int:
        found.append(f"place\n{expected_got('a best loss and a number of validations', place)}")
    if not isinstance(place.get("batches"), dict | None):
        found.append(f"batches\n{expected_got('the state of a Batches', place['batches'])}")
    require_same(found)


def copy_tensors(into: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy tensors by name, in place."""
    for name, tensor in into.items():
        tensor.copy_(given[name])


def frozen_changed(compiled: Compiled, stored: Mapping[str, Tensor]) -> list[str]:
    """Names of parameters and buffers that are not trained and differ from the stored ones."""
    trained = compiled.trained()
    return [
        name
        for name, tensor in model_tensors(compiled.model).items()
        if name not in trained and not torch.equal(tensor.cpu(), stored[name].cpu())
    ]


def require_same(found: list[str], path: Path | None = None) -> None:
    if found:
        more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
        raise CheckpointError(
            "\n".join(["the checkpoint belongs to another model", *found[:SHOWN], *more]),
            where=str(path) if path else "load_state_dict",
            instead="give the model, loss and method that it was saved with ('expected' is yours)",
        )
