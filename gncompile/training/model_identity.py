"""Whether the model is still the one that was compiled, asked before each use of a trainer.

A trainer keeps the model's own tensors and a graph of what the model computes. Both can be changed behind
its back: ``load_state_dict(assign=True)``, ``param.data = …``, ``.to(…)``, a module replaced, a hook
registered, a buffer written. The rule: *other tensors are followed, another function is refused.*

Each use compares a list of objects by identity: modules' types, attributes, submodules, hooks; of parameters
the storage, dtype and whether they are trained; of other tensors the storage and torch's count of writes.
That takes some microseconds a module. Only where the list differs the model is traced again, and its graph
decides: with the same graph its tensors take the place of the old ones, with another one
:class:`~gncompile.errors.ModelChangedError` is raised. A model that was compiled with dropout may be in
evaluation mode, ``drops`` tells; steps drop nothing then. Where only attributes differ that are new, or have
changed without consequence before, the model's values on a few random samples decide whether that is needed.
Not seen are values written past torch's count (``buffer.data``, numpy arrays over the same memory) and lists
or dictionaries changed in place.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

from torch import Tensor, nn
from torch.nn.modules import module as every_module

from ..errors import GncompileError, ModelChangedError
from ..graph.dropout import Mask, without_dropout
from ..graph.model_graph import ModelGraph, TracedModel
from .fingerprint import graph_differences
from .reported import version

ACCEPTED = 8
"""States of the modules remembered as those of the same function: train and eval mode in turn, say."""
HARMLESS = 3
"""Changes of one attribute without another graph, after which values are compared instead: a counter, say."""
OWN = frozenset(vars(nn.Module())) - {"training"}
"""What torch itself keeps in a module."""
EXPANDED = ("_modules", "_buffers", "_forward_hooks", "_forward_pre_hooks")
BACKWARD = {
    "_backward_hooks": "register_full_backward_hook",
    "_backward_pre_hooks": "register_full_backward_pre_hook",
}
AGAIN = "compile the model as it is now, gncompile.compile(model, …), or take the change back"

Objects = list[object]


class ModelIdentity:
    """Watches one model, and the module that its loss was given by.

    ``again`` traces the model as it is, ``agrees`` tells whether a graph and the model compute the same
    values, and ``same_loss`` whether the loss module is still what it was.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: object,
        traced: TracedModel,
        again: Callable[[], TracedModel],
        agrees: Callable[[TracedModel], bool],
        same_loss: Callable[[], bool],
    ) -> None:
        self._model, self.loss = model, loss if isinstance(loss, nn.Module) else None
        self._again, self._agrees, self._same_loss = again, agrees, same_loss
        self._harmless: Counter[tuple[int, str]] = Counter()
        self._trained = {name: p.requires_grad for name, p in _parameters(model).items()}
        self._marks = {name: marks(tensor) for name, tensor in traced.parameters.items()}
        self.drops = True
        """Whether the model is in training mode, as far as its dropout tells."""
        self.modes = [module.training for module in model.modules()]
        """Which modules were in training mode when the model was compiled."""
        self._watch(traced)
        self._accepted = [(self._state(), self.drops)]

    def changes(self) -> TracedModel | None:
        """None if nothing has changed; else the same graph with the tensors that the model has now.

        Raises :class:`~gncompile.errors.ModelChangedError` if the model is no longer what was compiled.
        """
        parameters = self._parameters == self._parameter_marks()
        known = self._written == self._written_marks() and self._is_accepted(self._state())
        known = known and self._still_harmless()
        if parameters and known:
            return None
        require_no_gradient_hooks(self._model, self.loss)
        now = self._checked_parameters()
        if known:
            used = {name: now[name] for name in self._traced.parameters}
            traced = replace(self._traced, parameters=used)
        else:
            traced = self._traced_again()
            self._forgive()
        self._watch(traced)
        if not known:
            self._accepted = [(self._state(), self.drops), *self._accepted][:ACCEPTED]
        return traced

    # --- What is watched ------------------------------------------------------------------------------

    def _watch(self, traced: TracedModel) -> None:
        """Take the model as it is."""
        self._traced = traced
        modules = [*self._model.modules(), *(self.loss.modules() if self.loss else ())]
        self._modules = list(dict.fromkeys(modules))
        self._attributes = {
            module: {
                name: value
                for name, value in vars(module).items()
                if name not in OWN and self._harmless[id(module), name] < HARMLESS
            }
            for module in self._modules
        }
        self._unwatched = self._unwatched_values()
        self._owners = [(module, key) for module in self._modules for key in module._parameters]
        self._frozen = [(m, key) for m, key in self._owners if not _trained(m._parameters[key])]
        held = [value for module in self._modules for value in vars(module).values()]
        held += [buffer for module in self._modules for buffer in module.buffers(recurse=False)]
        self._others = list({id(t): t for t in held if isinstance(t, Tensor)}.values())
        self._parameters, self._written = self._parameter_marks(), self._written_marks()

    def _state(self) -> Objects:
        """What the modules are, as objects to be compared by identity."""
        found: Objects = []
        for module, attributes in self._attributes.items():
            inside = vars(module)
            found += (type(module), type(module).forward, inside.get("forward"))
            found += map(inside.get, attributes)
            found += inside["_parameters"]
            for name in EXPANDED:
                if inside[name]:
                    found += inside[name].values()
            found += (inside["_backward_hooks"] or None, inside["_backward_pre_hooks"] or None)
        found += every_module._global_forward_hooks.values()
        found += every_module._global_forward_pre_hooks.values()
        found += every_module._global_backward_hooks.values()
        found += every_module._global_backward_pre_hooks.values()
        return found

    def _is_accepted(self, state: Objects) -> bool:
        """Whether the modules were seen to be so before; ``drops`` is then what it was."""
        for known, drops in self._accepted:
            if len(known) == len(state) and all(map(operator.is_, known, state)):
                self.drops = drops
                return True
        return False

    def _still_harmless(self) -> bool:
        """Whether the values are the graph's, if an attribute is new or was harmless and has changed."""
        now = self._unwatched_values()
        before = self._unwatched
        if len(now) == len(before) and all(map(operator.is_, now, before)):
            return True
        if not self._agrees(self._traced):
            return False
        self._unwatched = self._unwatched_values()  # forward may count
        return True

    def _unwatched_values(self) -> Objects:
        return [
            value
            for module, watched in self._attributes.items()
            if len(vars(module)) > len(OWN) + len(watched)
            for name, value in vars(module).items()
            if name not in OWN and name not in watched
        ]

    def _parameter_marks(self) -> Objects:
        """Where parameters are, whether they are trained, and whether they have hooks."""
        found: Objects = []
        for module, key in self._owners:
            p = module._parameters.get(key)
            if p is not None:
                hooked = p._backward_hooks or p._post_accumulate_grad_hooks
                place = p.data_ptr(), p.shape, p.dtype, p.requires_grad
                found.append((id(p), *place, bool(hooked)))
        return found

    def _written_marks(self) -> Objects:
        """Where tensors that are not trained are, and how often they were written."""
        frozen = [module._parameters.get(key) for module, key in self._frozen]
        tensors = (*self._others, *(p for p in frozen if p is not None))
        return [(id(tensor), tensor.data_ptr(), version(tensor)) for tensor in tensors]

    # --- Judging a change -----------------------------------------------------------------------------

    def _checked_parameters(self) -> dict[str, nn.Parameter]:
        """The model's parameters by name, if they can take the place of those compiled."""
        now = _parameters(self._model)
        for name, trained in self._trained.items():
            if name in now and now[name].requires_grad != trained:
                verb = "frozen" if trained else "unfrozen"
                _refuse(f"the parameter {name!r} was {verb} after the model was compiled")
        for name, bound in self._marks.items():
            if name not in now:
                _refuse(f"the model has no parameter {name!r} any more")
            differences = [
                f"{what} {new} instead of {old}"
                for what, new, old in zip(MARKS, marks(now[name]), bound, strict=True)
                if new != old
            ]
            if differences:
                _refuse(f"the parameter {name!r} has the {', the '.join(differences)}")
        trained_names = [name for name in self._traced.parameters if self._trained.get(name)]
        users = Counter(now[name].data_ptr() for name in trained_names if now[name].numel())
        twice = [name for name in trained_names if users[now[name].data_ptr()] > 1]
        if twice:
            _refuse(f"the parameters {', '.join(twice)} share their memory")
        return now

    def _traced_again(self) -> TracedModel:
        """The model as it is, if it still computes the same."""
        if not self._same_loss():
            _refuse("the loss module was changed after the model was compiled")
        try:
            traced = self._again()
        except GncompileError as error:
            _refuse(f"the model was changed, and cannot be compiled any more: {error}")
        self.drops = _drops(traced.graph) or not _drops(self._traced.graph)
        compiled = self._traced.graph if self.drops else without_dropout(self._traced.graph)
        found = graph_differences(compiled, traced.graph)
        if found:
            _refuse(f"the model computes another function than the one compiled\n{found[0]}")
        if _code(traced) != _code(self._traced):
            _refuse("the frozen part of the model computes another function than the one compiled")
        used = set(traced.parameters) ^ set(self._traced.parameters)
        if used:
            _refuse(f"the model uses other parameters: {', '.join(sorted(used))}")
        return traced.with_graph(self._traced.graph)

    def _forgive(self) -> None:
        """Count attributes that changed without consequence, a module's own counters say."""
        for module, attributes in self._attributes.items():
            for name, value in attributes.items():
                if name != "training" and vars(module).get(name) is not value:
                    self._harmless[id(module), name] += 1


@contextmanager
def in_modes(model: nn.Module, modes: Iterable[bool]) -> Iterator[None]:
    """Within this block each module is in training mode or not as these say."""
    modules = list(model.modules())
    before = [module.training for module in modules]
    try:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.training = training


def _drops(graph: ModelGraph) -> bool:
    return any(isinstance(node.op, Mask) for node in graph)


def _code(traced: TracedModel) -> str:
    return traced.trunk.code() if traced.trunk else ""


def _trained(parameter: nn.Parameter | None) -> bool:
    return parameter is not None and parameter.requires_grad


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


MARKS = ("shape", "strides", "dtype", "device")


def marks(tensor: Tensor) -> tuple[object, ...]:
    """What has to stay the same of a parameter whose storage may change."""
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device


def _refuse(found: str) -> NoReturn:
    raise ModelChangedError(found, instead=AGAIN)


def require_no_gradient_hooks(model: nn.Module, loss: object = None) -> None:
    """Raise where hooks would change or watch gradients: the compiled step calls none.

    Forward hooks of the model's modules are traced with it. Those of the loss are not, as its formula is
    taken from its settings.
    """
    remedy = (
        "remove the hook; freeze parameters with requires_grad_(False), write a mask into forward, or look "
        "at trainer.gradients(x, y)"
    )

    def refuse(what: str, place: str) -> None:
        raise ModelChangedError(
            f"{what} would never be called: no autograd runs", where=place, instead=remedy
        )

    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            continue
        if parameter._backward_hooks:
            refuse("a gradient hook (register_hook)", f"parameter {name!r}")
        if getattr(parameter, "_post_accumulate_grad_hooks", None):
            refuse("a register_post_accumulate_grad_hook", f"parameter {name!r}")
    watched = [(name, module, "module") for name, module in model.named_modules()]
    if isinstance(loss, nn.Module):
        watched += [(name, module, "loss") for name, module in loss.named_modules()]
    for name, module, what in watched:
        place = f"{what} {name!r}" if name else f"the {what} itself, {type(module).__name__}"
        for attribute, registered in BACKWARD.items():
            if getattr(module, attribute, None):
                refuse(f"a backward hook ({registered})", place)
        if what == "loss" and (module._forward_hooks or module._forward_pre_hooks):
            refuse("a forward hook of the loss", place)
    if every_module._global_backward_hooks or every_module._global_backward_pre_hooks:
        refuse("a backward hook of all modules (register_module_full_backward_hook)", "torch.nn")
