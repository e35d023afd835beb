"""What the first steps' batches tell, each told once as a warning: few samples, and unscaled data."""

from __future__ import annotations

import weakref

import numpy as np
from torch import Tensor

from ..errors import SmallBatchWarning, UnscaledDataWarning, warn
from ..graph.embedding import is_whole
from ..graph.layers import LayerOp
from ..graph.nodes import Node
from ..losses.standardising import has_units
from .batches import Target, input_tensors
from .compiled import Compiled

FEW = 32
"""Samples of a batch below which there is a warning of noise."""
UNLIKE = 100.0
"""Times that the spreads of columns may differ. Where ten columns, or one of them, are so unlike the others,
the loss after 15 epochs is two to nine times that of standardised columns; at a tenth of it, the same."""
FAR = 30.0
"""Spreads that an input may lie away from 0: from there units saturate, and the loss is eight times as large.
What is within :data:`NEAR`, a bright pixel say, saturates nothing."""
NEAR = 10.0
LOOKED_AT = 16, 256
"""Samples that tell a column's size, at least and at most."""


class FirstBatches:
    """Looks at the batches of the first steps."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._first: weakref.ref[Tensor] | None = None
        self._scales_seen = False

    def look(
        self, updates: int, x: Tensor | tuple[Tensor, ...], y: Target, gathers: bool, samples: int
    ) -> None:
        """Before a step on ``(x, y)``, which is all or a part of so many ``samples``; ``gathers`` says that
        batches are put together for it."""
        inputs = input_tensors(x)
        if not gathers and self._compiled.settings.second_order:
            self._look_for_few(updates, inputs[0], samples)
        if not self._scales_seen and len(inputs[0]) >= LOOKED_AT[0]:
            self._scales_seen = True
            self._look_at_scales(inputs, y)

    def _look_for_few(self, updates: int, x: Tensor, samples: int) -> None:
        """Warn of minibatches of few samples at the second step, if its batch is another than the first's."""
        if updates == 0:
            self._first = weakref.ref(x)
        another = self._first is not None and self._first() is not x
        if updates == 1 and another and samples < FEW:
            warn(
                SmallBatchWarning,
                f"steps on {samples} samples",
                instead="let the trainer put batches together, with fit or by for x, y in "
                "trainer.gather(loader): the curvature of so few samples fits their noise, and steps "
                "can lead astray",
            )

    def _look_at_scales(self, inputs: tuple[Tensor, ...], y: Target) -> None:
        """Warn of inputs, or targets in units that count, whose columns are unlike (:func:`unlike`)."""
        nodes = [] if self._compiled.traced.trunk else self._compiled.traced.inputs
        columns = [
            (f"input {node.name!r}", x)
            for node, x in zip(nodes, inputs, strict=False)
            if self._is_read_as_it_is(node)
        ]
        told = [found for each in columns if (found := unlike(*each, offsets=True))]
        pair = "True"
        if isinstance(y, Tensor) and has_units(self._compiled.loss):
            of_targets = unlike("the target", y)
            told, pair = told + [of_targets] * bool(of_targets), "(x, y)" if of_targets else pair
        if told:
            one = len(inputs) == 1
            warn(
                UnscaledDataWarning,
                "\n".join(told),
                instead=f"compile(..., standardise={pair}) trains on standardised columns, and keeps your "
                "units outside; or pass standardised data"
                if one
                else "pass standardised data, or put gncompile.Standardised around the part of the model "
                "that reads it",
            )

    def _is_read_as_it_is(self, node: Node) -> bool:
        """Whether this input's columns go to trained layers as they are, and not through a scaling."""
        graph = self._compiled.traced.graph
        readers = graph.consumers(node.name)
        trained = all(isinstance(r.op, LayerOp) and r.op.trainable for r in readers)
        return len(node.shape) == 1 and not is_whole(node.op) and trained


@np.errstate(all="ignore")  # squares that overflow or vanish are the step's affair, and told there
def unlike(what: str, values: Tensor, offsets: bool = False) -> str:
    """What to say of columns ``[N, d]`` of very unlike spreads, or far from 0 if ``offsets``; else nothing.

    Columns in which one value makes up a quarter are left out: one-hot and other sparse ones, a pixel that is
    often dark, constants. Nothing is said of what lies on a device, where looking would wait.
    """
    if values.dim() != 2 or values.device.type != "cpu" or not values.is_floating_point():
        return ""
    rows = values.detach()[: LOOKED_AT[1]].double().numpy()
    quarter, ordered = len(rows) // 4, np.sort(rows, axis=0)  # where torch's takes 60 times as long
    known = (ordered[quarter:] != ordered[:-quarter]).all(axis=0)
    if not known.any():
        return ""
    columns = np.flatnonzero(known)
    spread, middle = rows.std(axis=0)[known], rows.mean(axis=0)[known]
    least, most = int(spread.argmin()), int(spread.argmax())
    if spread[most] > UNLIKE * spread[least]:
        return (
            f"the columns of {what} differ by orders of magnitude: column {columns[least]} varies by about "
            f"{spread[least]:.2g}, column {columns[most]} by {spread[most]:.2g}"
        )
    away = np.where(np.abs(middle) > NEAR, np.abs(middle) / spread, 0.0)
    far = int(away.argmax())
    if offsets and away[far] > FAR:
        return (
            f"column {columns[far]} of {what} lies far from 0 for what it tells: it varies by about "
            f"{spread[far]:.2g} around {middle[far]:.4g}"
        )
    return ""
