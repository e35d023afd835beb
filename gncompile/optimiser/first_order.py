"""Adam and SGD on the compiled gradient: the baselines, by torch's own optimisers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .settings import Settings


class FirstOrder:
    """A torch optimiser over the model's parameters that reads compiled gradients instead of ``.grad``."""

    def __init__(self, settings: Settings, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        self._last_good = {name: p.clone() for name, p in parameters.items()}
        tensors = list(self.parameters.values())
        self.optimiser: torch.optim.Optimizer
        if settings.method == "adam":
            self.optimiser = torch.optim.Adam(tensors, lr=settings.learning_rate)
        else:
            momentum = settings.sgd_momentum
            self.optimiser = torch.optim.SGD(
                tensors, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0
            )

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One update; the parameters before it are kept for :meth:`undo`."""
        for name, parameter in self.parameters.items():
            self._last_good[name].copy_(parameter)
            parameter.grad = gradients[name]
        self.optimiser.step()

    def undo(self) -> None:
        """Parameters as they were before the last update."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self._last_good[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The optimiser's own tensors and the kept parameters, as ``key/parameter``."""
        state = {f"last_good/{name}": kept for name, kept in self._last_good.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimiser.state[parameter].items():
                state[f"{key}/{name}"] = value
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue where ``state`` was taken."""
        self.optimiser.state.clear()
        for path, value in state.items():
            key, _, name = path.partition("/")
            if key == "last_good":
                self._last_good[name].copy_(value)
            else:
                self.optimiser.state[self.parameters[name]][key] = value.clone()
