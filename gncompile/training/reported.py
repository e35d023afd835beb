"""The reported parameters, and which ones a model holds.

One rule for all that a trainer tells: *the reported parameters are the averages where these are better, as
far as the last comparison tells (:mod:`gncompile.derivation.averages`), and else the latest; after a fit
that kept its best, and until the next step, they are those*. ``evaluate`` and ``predict`` speak of them, a
checkpoint's ``model/…`` are they, and the model holds them after ``fit``, ``finish`` and ``resume``. In a
loop of steps it holds the latest, from which training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..derivation.averages import BETTER, LEADS
from ..runtime.executable import Executable


class Reported:
    """Parameters of a model, their averages and the best of a fit, and which of them the model holds.

    ``surely`` runs what copies them, and runs it again if it was interrupted. ``ahead`` says that steps run
    ahead of the host, which then looks at no number between them.
    """

    def __init__(self, executable: Executable, ahead: bool) -> None:
        self._memory, self._ahead = executable.memory, ahead
        self._states = self._memory.states
        leaves = executable.program.leaves("parameter")
        self._names = [leaf.op.key for leaf in leaves]  # type: ignore[union-attr]
        self._averages = {  # matrices in the program, here of the parameters' own shapes
            name: self._states[key].view(self._memory.parameter(name).shape)
            for name, leaf in zip(self._names, leaves, strict=True)
            if (key := f"average.{leaf.name}") in self._states
        }
        self._best: Mapping[str, Tensor] = {}
        self._shown: Mapping[str, Tensor] = {}
        self._latest: dict[str, Tensor] = {}
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

    def now(self) -> dict[str, Tensor]:
        """A copy of the reported parameters, all that are trained, by name."""
        reported, _ = self.tensors()
        return {
            name: reported.get(name, self._memory.parameter(name)).clone() for name in self._names
        }

    def choose(self, best: Mapping[str, Tensor]) -> None:
        """Report ``best`` until the next step; nothing chosen is the averages or the latest again."""
        if best or self._best:
            self._best = best
            self.note()

    # --- What the model holds -------------------------------------------------------------------------

    def show(self) -> None:
        """Give the model what is reported; what it held is kept for :meth:`hide`."""
        if meant := self._meant(None):
            self._hold(meant)

    def hide(self) -> None:
        """Give the model back what :meth:`show` replaced, unless somebody has changed it since."""
        if self.shows:
            self._give(self._latest)
        self._latest, self._shown = {}, {}

    @property
    def shows(self) -> bool:
        """Whether the model holds others than the latest now."""
        return bool(self._latest) and all(
            torch.equal(self._memory.parameter(name), value) for name, value in self._shown.items()
        )

    def _meant(self, averaged: bool | None) -> Mapping[str, Tensor]:
        """What ``averaged`` asks for, see :meth:`Trainer.evaluate`; nothing stands for the latest."""
        if averaged is None and self._best:
            return self._best
        wanted = self.better if averaged is None else averaged and self._exist
        return self._averages if wanted else {}

    def _hold(self, values: Mapping[str, Tensor]) -> None:
        """Give the model these, or the latest where there are none."""
        if values and values is self._shown and self.shows:
            return
        self.hide()
        if values:
            self._latest = {name: self._memory.parameter(name).clone() for name in values}
            self._shown = values
            self._give(values)

    def _give(self, values: Mapping[str, Tensor]) -> None:
        def copy() -> None:
            for name, value in values.items():
                self._memory.parameter(name).copy_(value)

        self.surely(copy)

    @contextmanager
    def shown(self, averaged: bool | None) -> Iterator[None]:
        """Within this block the model holds what ``averaged`` asks for, see :meth:`Trainer.evaluate`."""
        before = self._shown if self.shows else {}
        self._hold(self._meant(averaged))
        try:
            yield
        finally:
            self._hold(before)

    # --- What is stored -------------------------------------------------------------------------------

    def tensors(self) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
        """The reported parameters, and the latest where these are others, by name."""
        latest = self._latest if self.shows else {}
        reported = self._meant(None)
        if not reported:
            return latest, {}
        return reported, {name: self._memory.parameter(name) for name in reported} | latest

    def forget(self) -> None:
        """Take what the model holds for its latest parameters, after a load."""
        self._latest, self._shown, self._best = {}, {}, {}

    # --- Parameters from outside ----------------------------------------------------------------------

    def note(self) -> None:
        """The parameters are as the trainer has left them."""
        watched = bool(self._averages) and self._may_lead
        self._versions = self._written() if watched or self._best else []
        self._distances = self._from_averages() if watched else None

    def look(self) -> None:
        """Where the model was given other parameters, neither averages nor the best are better than these.

        Waits for no device.
        """
        if self._best and not self.shows and (self._latest or self._versions != self._written()):
            self._best = {}
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
        held = [self._memory.parameter(name) for name in self._averages]
        apart = torch._foreach_sub(held, [*self._averages.values()])
        return torch.stack(torch._foreach_norm(apart))


def version(tensor: Tensor) -> int:
    """How often a tensor was written in place; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version
