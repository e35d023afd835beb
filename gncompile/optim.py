"""Second-order training in the shape of a ``torch.optim`` optimiser, for loops and tools that expect one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from .app.compile import compile
from .base.settings import AUTO, Settings
from .errors import BatchError, CheckpointError, CompileError, GncompileError, expected_got
from .losses.vocabulary import LossSpec
from .training import checkpoint
from .training.batches import Target
from .training.trainer import Inputs, Trainer

SCHEDULERS = (
    "leave the learning rate scheduler out: the step size is chosen anew in every step, and the damping "
    "adapts; optimiser.trainer.damping may be set"
)
INSTEAD_OF_BACKWARD = (
    "loss = optimiser.step(x, y) computes loss, derivatives and update of a batch: leave out "
    "loss.backward(), and closures"
)


class GaussNewton(torch.optim.Optimizer):
    """A :class:`~gncompile.training.trainer.Trainer` as an optimiser: ``loss = optimiser.step(x, y)``.

    ``model``, ``loss``, ``method`` and ``options`` are those of :func:`gncompile.compile`. The model is
    compiled for ``example_inputs``, or else for the first batch or a loaded state. No ``loss.backward()``
    and no learning rate: ``zero_grad`` does nothing, and schedulers are refused.

    >>> import gncompile, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    >>> optimiser = gncompile.optim.GaussNewton(model, "mse")
    >>> for x, y in [(torch.ones(300, 4), torch.ones(300, 1))] * 3:
    ...     loss = optimiser.step(x, y)
    >>> optimiser.trainer.updates
    3
    """

    def __init__(
        self,
        model: nn.Module,
        loss: LossSpec,
        *,
        method: str | Mapping[str, str] | None = None,
        example_inputs: Inputs | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise CompileError(
                f"the model is of type {type(model).__name__}",
                instead="pass the torch.nn.Module itself, not its parameters: GaussNewton(model, loss)",
            )
        options |= {} if method is None else {"method": method}
        own = set(compile.__kwdefaults__ or {})
        own -= {"solver"} if isinstance(options.get("solver"), str) else set()
        self._settings = {k: v for k, v in options.items() if k not in own}
        Settings.of(**self._settings)  # a wrong option is told here, not at the first step
        self._model, self._loss, self._options = model, loss, options
        self._trainer: Trainer | None = None
        super().__init__([p for p in model.parameters() if p.requires_grad], {})
        if example_inputs is not None:
            self._compile(example_inputs)

    def _compile(self, x: Inputs) -> Trainer:
        self._trainer = compile(self._model, self._loss, x, **self._options)
        return self._trainer

    @property
    def trainer(self) -> Trainer:
        """All that is not an optimiser's: ``damping``, ``evaluate``, ``input_gradient``, ``explain``, ….

        Raises :class:`~gncompile.errors.GncompileError` before there is one.
        """
        if self._trainer is None:
            raise GncompileError(
                "nothing is compiled before the first step",
                instead="take a step, or give GaussNewton(..., example_inputs=x)",
            )
        return self._trainer

    def step(  # type: ignore[override]
        self,
        x: Any = None,
        y: Target = None,
        *,
        closure: Callable[[], object] | None = None,
    ) -> Tensor:
        """:meth:`Trainer.step` on one batch; returns its loss before the update, a scalar.

        It is ready when it is read: on a CUDA device this does not wait. A ``closure``, which frameworks pass
        on, may do something else before, but no derivatives of its own.
        """
        if x is None or y is None:
            given = (
                "a closure" if callable(x) or closure else "no batch" if x is None else "x alone"
            )
            raise BatchError(
                f"step was given {given}, and takes the batch (x, y)",
                instead=INSTEAD_OF_BACKWARD,
            )
        if closure is not None and closure() is not None:
            raise BatchError(
                "step was given a closure that computes something, beside the batch",
                instead=INSTEAD_OF_BACKWARD,
            )
        trainer = self._trainer or self._compile(x)
        trainer.step(x, y)
        return StepLoss(trainer.compiled.executable.result("loss").clone())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: a step uses no ``.grad``."""

    # --- states ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint of the trainer holds, copied for ``torch.save``; empty before a first step.

        The model's parameters are among it: those that are reported, and those that training goes on from.
        With ``factors="sharded"`` it is a collective call of all processes.
        """
        return checkpoint.in_memory(self._trainer) if self._trainer else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``, bit for bit; the model gets its parameters.

        Raises :class:`~gncompile.errors.CheckpointError`, and changes nothing, if it is that of another model
        or of other options.
        """
        if state == {} and self._trainer is None:
            return
        where = "GaussNewton.load_state_dict"
        found = checkpoint.from_memory(state, where)
        mine = vars(Settings.of(**self._settings))
        stored = found.about["settings"]
        for name in self._settings:
            if name in stored and mine[name] not in (stored[name], AUTO):
                raise CheckpointError(
                    f"the state has another {name}\n{expected_got(mine[name], stored[name])}",
                    where=where,
                    instead="make the optimiser with the options it was saved with",
                )
        self._trainer = checkpoint.restored(found, self._model, self._loss, Trainer)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise GncompileError(
            "an optimiser that holds its model cannot be pickled or copied",
            instead="torch.save(optimiser.state_dict(), path), and load_state_dict into a new one",
        )

    # --- what tools look at ---------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The model's trained parameters are the only group, for reading."""
        if self.param_groups:
            raise GncompileError(
                "the parameters that are trained are those of the compiled model",
                instead="freeze others with requires_grad_(False), and make a new optimiser",
            )
        self.param_groups.append(Group(param_group))

    def __repr__(self) -> str:
        return f"GaussNewton({self._trainer or type(self._model).__name__})"


class Group(dict[str, Any]):
    """A group of parameters, without the learning rate that a scheduler would change."""

    def __missing__(self, key: str) -> NoReturn:
        self._refuse_rate(key)
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._refuse_rate(key)
        super().__setitem__(key, value)

    def update(self, *given: Any, **named: Any) -> None:
        """As of a dict, each by ``[key] =``."""
        for key, value in dict(*given, **named).items():
            self[key] = value

    @staticmethod
    def _refuse_rate(key: str) -> None:
        if key in ("lr", "initial_lr"):
            raise GncompileError("a second-order step has no learning rate", instead=SCHEDULERS)


class StepLoss(Tensor):
    """The loss of a step that has been taken, a scalar; what is computed from it is an ordinary tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, value: Tensor) -> StepLoss:
        return torch.Tensor._make_subclass(cls, value)

    def backward(self, *_: object, **__: object) -> NoReturn:
        """Not needed any more."""
        raise GncompileError("this loss has been stepped on already", instead=INSTEAD_OF_BACKWARD)

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"StepLoss({self.item():.6g})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)
