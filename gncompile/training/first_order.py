"""Adam and SGD on the compiled gradient: the baselines, by torch's own optimisers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..base.settings import Settings


class FirstOrder:
    """A torch optimiser over the model's parameters that reads compiled gradients instead of ``.grad``."""

    def __init__(self, settings: Settings, parameters: Mapping[str, Tensor]) -> None:
        self._settings = settings
        self._last_good = {name: p.clone() for name, p in parameters.items()}
        self._bind(parameters)

    def _bind(self, parameters: Mapping[str, Tensor]) -> None:
        self.parameters = dict(parameters)
        settings, tensors = self._settings, list(parameters.values())
        self.optimiser: torch.optim.Optimizer
        if settings.method == "adam":
            self.optimiser = torch.optim.Adam(tensors, lr=settings.learning_rate)
        else:
            momentum = settings.sgd_momentum
            self.optimiser = torch.optim.SGD(
                tensors, lr=settings.learning_rate, momentum=momentum, nesterov=momentum > 0
            )

    def rebind(self, parameters: Mapping[str, Tensor]) -> None:
        """Go on with other tensors of the same names, the model's new ones."""
        own = {name: self.optimiser.state[p] for name, p in self.parameters.items()}
        self._bind(parameters)
        for name, state in own.items():
            self._last_good[name].copy_(parameters[name])
            self.optimiser.state[self.parameters[name]] = state

    @property
    def begun(self) -> bool:
        """Whether torch's optimiser has a state yet, which it makes in its first step."""
        return any(self.optimiser.state.values())

    def restart(self) -> None:
        """As before the first step."""
        self.optimiser.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """What a step overwrites."""
        state = {f"parameter/{name}": parameter for name, parameter in self.parameters.items()}
        return state | {k: v for k, v in self.state_dict().items() if isinstance(v, Tensor)}

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
            for key, value in self.optimiser.state.get(parameter, {}).items():
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
                parameter = self.parameters[name]
                # Counts of steps stay where they are, as in torch's own loading.
                place = value.device if key == "step" else parameter.device
                self.optimiser.state[parameter][key] = value.to(place, copy=True)
