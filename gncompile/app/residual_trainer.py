"""The trainer of a residual problem: what a trainer does, with the points and the terms of the problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from ..base.tables import table
from ..data.data_sets import Batches
from ..data.drawn_batches import DrawnBatches
from ..errors import GncompileError, is_whole
from ..frontends.residual_network import ResidualNetwork
from ..training.metrics import Metric
from ..training.records import History
from ..training.trainer import Trainer
from .residual_terms import Batch

VALIDATE = 10
"""Steps between two looks at the terms; each costs a forward pass."""


class ResidualTrainer(Trainer):
    """A :class:`~gncompile.Trainer` that knows its problem; made by :meth:`Problem.compile`."""

    problem: Any
    """The :class:`~gncompile.app.residuals.Problem` that it was made of."""

    @property
    def seed(self) -> int:
        """What the points that are drawn depend on, besides the number of the draw."""
        return self.compiled.executable.memory.draws.seed

    def fit(
        self,
        train: Batches | Iterable[object] | None = None,
        *more: object,
        resample_every: int | None = None,
        **asked: Any,
    ) -> History:
        """Take ``updates`` steps on all points; :meth:`Trainer.fit` tells the other arguments.

        ``resample_every`` is the number of steps after which points are drawn anew (default: never), those of
        tensors and grids stay. Every ``validate_every`` steps (:data:`VALIDATE`) the history gets ``E_t`` of
        every term by its name, and the unknowns by theirs, on the first draw of the points:
        ``history.interior``; ``validation_loss`` is their weighted sum. With a ``validation`` of one's own it
        gets none of this.
        """
        train = self.batches(resample_every) if train is None else train
        if "validation" not in asked:
            batch = self.problem.batch(seed=self.seed)
            own = [Metric(name, _energy(batch, name), False) for name in batch.rows]
            own += [Metric(name, self._unknown(name)) for name in self.problem.unknowns]
            given = asked.get("metrics", ())
            several = given if isinstance(given, list | tuple) else [given]
            told = {"validation": batch.pair(self.problem.equations), "validate_every": VALIDATE}
            asked = {**told, **asked, "metrics": [*own, *several]}
        return super().fit(train, *more, **asked)

    def batches(self, resample_every: int | None = None) -> DrawnBatches:
        """What ``fit`` goes over: all points as the one batch of a step, drawn anew after so many."""
        if resample_every is not None and not is_whole(resample_every):
            raise GncompileError(
                f"resample_every={resample_every!r}", instead="give a number of steps from 1"
            )
        return DrawnBatches(self._draw, resample_every, self.seed)

    def terms(self, draw: int = 0) -> dict[str, float]:
        """``E_t`` of every term by name, on the points of a draw: the mean loss of its residuals."""
        batch = self.problem.batch(draw, self.seed)
        return batch.energies(self.predict((batch.x, batch.data)))

    def summary(self, *arguments: Any, **named: Any) -> str:
        """What :meth:`Trainer.summary` tells, and a table of the terms."""
        energies = self.terms()
        rows = [["term", "equations", "points", "loss", "weight", "mean loss"]]
        for (name, term), equations in zip(
            self.problem.terms.items(), self.problem.system.equations, strict=True
        ):
            said = "; ".join(map(str, equations))
            count = self.problem.sampling.points[name].count
            figures = f"{term.weight:g}", f"{energies[name]:.3g}"
            rows.append([name, said, str(count), term.loss_said, *figures])
        unknowns = [f"{name} = {value:.6g}" for name, value in self.problem.unknowns.items()]
        return "\n".join(
            [super().summary(*arguments, **named), "", table(rows, right=(2, 4, 5)), *unknowns]
        )

    def _draw(self, number: int) -> tuple[Any, Any]:
        return self.problem.batch(number, self.seed).pair(self.problem.equations)

    def _unknown(self, name: str) -> Callable[[Any, Any], float]:
        return lambda z, y: self.problem.unknowns[name]

    def __deepcopy__(self, memo: dict[int, Any]) -> ResidualTrainer:
        new = super().__deepcopy__(memo)
        assert isinstance(new, ResidualTrainer)
        assert isinstance(new.model, ResidualNetwork)
        new.problem = self.problem.for_network(new.model)
        return new


def _energy(batch: Batch, name: str) -> Callable[[Any, Any], Tensor]:
    return lambda z, y: batch.energy(name, z)
