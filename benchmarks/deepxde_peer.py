"""DeepXDE's L-BFGS on an equation of ``benchmarks.pde``, on the same points from the same weights."""

from __future__ import annotations

import copy
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .equations import AGREEMENT, Forward, Posed

ITERATIONS = 10
"""Between two looks at the network."""
MOST = 10**6


@dataclass(frozen=True)
class Computed:
    """A network's outputs, and their derivatives as DeepXDE gives them; a :class:`~.equations.Field`."""

    grad: Any
    outputs: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.outputs[:, 0]

    def along(self, x: Tensor, *by: int) -> Tensor:
        if len(by) == 1:
            return self.grad.jacobian(self.outputs, x, i=0, j=by[0])[:, 0]
        return self.grad.hessian(self.outputs, x, i=by[0], j=by[1])[:, 0]


def deepxde(posed: Posed) -> Iterator[nn.Module]:
    """The network after every few iterations, with the options that DeepXDE's documentation names."""
    os.environ.setdefault("DDE_BACKEND", "pytorch")
    dde = importlib.import_module("deepxde")

    dde.config.set_default_float("float64")
    dde.optimizers.set_LBFGS_options(maxcor=100, ftol=0, gtol=0, maxiter=MOST, maxls=50)
    options = dde.optimizers.config.LBFGS_options
    options["iter_per_step"], options["fun_per_step"] = ITERATIONS, 25 * ITERATIONS // 20
    equation = posed.equation
    batch = posed.problem.batch(seed=posed.seed)
    points = {name: batch.x[rows] for name, rows in batch.rows.items()}
    by_hand = equation.by_hand

    def interior(x: Tensor, outputs: Tensor) -> Tensor:
        found = by_hand(Computed(dde.grad, outputs), dict.fromkeys(points, x))
        return found["interior"][:, None]

    low, high = zip(*equation.box.bounds.values(), strict=True)
    nothing = by_hand(Forward(lambda x: 0 * x[:, :1]), points)
    conditions = [
        dde.icbc.PointSetBC(points[name].numpy(), -nothing[name][:, None].numpy())
        for name in points
        if name != "interior"
    ]
    data = dde.data.PDE(
        dde.geometry.Hypercube(low, high), interior, conditions, num_domain=0, num_boundary=0,
        anchors=points["interior"].numpy(),
    )  # fmt: skip
    net = copy.deepcopy(posed.problem.net)
    for name in ("regularizer", "auxiliary_vars"):  # what DeepXDE's own networks have
        setattr(net, name, None)
    model = dde.Model(data, net)
    model.compile("L-BFGS", verbose=0)
    drawn = data.train_next_batch()
    found = float(model.outputs_losses_train(*drawn)[1].detach().sum()) / 2
    wanted = float(posed.objective(posed.problem.net)().detach())
    if abs(found / wanted - 1) > AGREEMENT:
        raise SystemExit(f"DeepXDE's loss is {found}, by hand {wanted}")
    while True:
        model.train_step(*drawn)
        yield net
