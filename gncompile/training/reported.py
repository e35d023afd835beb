"""The reported parameters, and which ones a model holds.

One rule for all that a trainer tells: *the reported parameters are the averages where these are better, as
far as the last comparison tells (:mod:`gncompile.derivation.averages`), and else the latest*. ``evaluate``
and ``predict`` speak of them, a checkpoint's ``model/…`` are they, and the model holds them after ``fit``,
``finish`` and ``resume``. In a loop of steps it holds the latest, from which training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..derivation.averages import BETTER, LEADS
from ..runtime.executable import Executable


class Reported:
    """Parameters of a model and their averages, and which of them the model holds.

    ``surely`` runs what copies them, and runs it again if it was interrupted. ``ahead`` says that steps run
    ahead of the host, which then looks at no number between them.
    """

    def __init__(self, executable: Executable, ahead: bool) -> None:
        self._memory, self._ahead = executable.memory, ahead
        self._states = self._memory.states
        leaves = executable.program.leaves("parameter")
        averaged = [leaf for leaf in leaves if f"average.{leaf.name}" in self._states]
        self._names = [leaf.op.key for leaf in averaged]  # type: ignore[union-attr]
        shapes = [parameter.shape for parameter in self._parameters()]
        self._averages = [  # matrices in the program, here of the parameters' own shapes
            self._states[f"average.{leaf.name}"].view(shape)
            for leaf, shape in zip(averaged, shapes, strict=True)
        ]
        self._latest: list[Tensor] = []
        self.surely: Callable[[Callable[[], None]], None] = lambda act: act()
        self.note()

    @property
    def better(self) -> bool:
        """Whether the averages had the lower loss when they were last compared."""
        return self._exist and float(self._states[BETTER]) > 0

    @property
    def noise_leads(self) -> bool:
        """Whether they were clearly better."""
        return bool(self._averages) and float(self._states[LEADS]) > 0

    @property
    def _exist(self) -> bool:
        return bool(self._averages) and float(self._states["averaged"]) > 0

    # --- What the model holds -------------------------------------------------------------------------

    def show(self) -> None:
        """Give the model its averages; what it held is kept for :meth:`hide`."""
        if not self.shows:
            self._latest = [parameter.clone() for parameter in self._parameters()]
            self._give(self._averages)

    def hide(self) -> None:
        """Give the model back what :meth:`show` replaced, unless somebody has changed it since."""
        if self.shows:
            self._give(self._latest)
        self._latest = []

    @property
    def shows(self) -> bool:
        """Whether the model holds its averages now."""
        return bool(self._latest) and all(map(torch.equal, self._parameters(), self._averages))

    def _parameters(self) -> list[Tensor]:
        return [self._memory.parameter(name) for name in self._names]

    def _give(self, values: list[Tensor]) -> None:
        def copy() -> None:
            for parameter, value in zip(self._parameters(), values, strict=True):
                parameter.copy_(value)

        self.surely(copy)

    @contextmanager
    def shown(self, active: bool) -> Iterator[None]:
        """Within this block the model holds its averages, or without ``active`` its latest parameters."""
        before = self.shows
        (self.show if active and self._exist else self.hide)()
        try:
            yield
        finally:
            (self.show if before else self.hide)()

    # --- What is stored -------------------------------------------------------------------------------

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The reported parameters, and the latest where these are others, by name."""
        latest = dict(zip(self._names, self._latest, strict=True)) if self.shows else {}
        if not self.better:
            return latest, {}
        held = dict(zip(self._names, self._parameters(), strict=True))
        return dict(zip(self._names, self._averages, strict=True)), latest or held

    def forget(self) -> None:
        """Take what the model holds for its latest parameters, after a load."""
        self._latest = []

    # --- Parameters from outside ----------------------------------------------------------------------

    def note(self) -> None:
        """The parameters are as the trainer has left them."""
        watched = self._averages and self._may_lead
        self._versions = self._written() if watched else []
        self._distances = self._from_averages() if watched else None

    def look(self) -> None:
        """Where the model was given other parameters, the averages are no longer known to be better.

        Waits for no device.
        """
        if self._distances is None or not self._may_lead or self.shows:
            return
        if self._versions != self._written():
            changed = torch.ones_like(self._states[BETTER], dtype=torch.bool)
        else:
            changed = (self._from_averages() != self._distances).any()
        for name in (BETTER, LEADS):
            self._states[name].masked_fill_(changed, 0.0)

    @property
    def _may_lead(self) -> bool:
        """Whether there is anything that other parameters could change, as far as the host may ask."""
        return self._ahead or any(float(self._states[name]) > 0 for name in (BETTER, LEADS))

    def _written(self) -> list[int]:
        return [version(self._memory.parameters[name]) for name in self._names]

    def _from_averages(self) -> Tensor:
        """The parameters' distances from their averages: torch does not count writes to ``.data``."""
        apart = torch._foreach_sub(self._parameters(), self._averages)
        return torch.stack(torch._foreach_norm(apart))


def version(tensor: Tensor) -> int:
    """How often a tensor was written in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
