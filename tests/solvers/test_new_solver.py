"""A solver from outside the package: one class, which no other file knows."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from architectures import normal
from torch import Tensor, nn

from gncompile.app.compile import compile_into
from gncompile.base.settings import Settings
from gncompile.errors import InternalError
from gncompile.program import operations as ir
from gncompile.program.builder import Value
from gncompile.program.phases import DIRECTION, Phase, Repeat, Stage, names
from gncompile.program.specs import Structure, matrix
from gncompile.solvers.solver import Solver
from gncompile.training.trainer import Trainer


class Rows(Solver):
    """``Δ = −(diag E[g²] + κ)⁻¹ ∇``, one number for each row of a layer's weights."""

    @classmethod
    def phases(cls, settings: Settings) -> tuple[Phase, ...]:
        return (
            Phase("squares", Stage.MEASUREMENT, ("gradient",), lambda now: now.factors),
            Phase("invert", Stage.DIRECTION, (), lambda now: now.fresh, Repeat.DAMPINGS),
            Phase(DIRECTION, Stage.DIRECTION, ("gradient",), repeat=Repeat.DAMPINGS),
        )

    def prepare(self) -> None:
        """E[g²] of the batch, and its damped inverse as a state."""
        builder, found = self.builder, {}
        with builder.phase("squares"):
            for layer, record in self.batch.graph.layers.items():
                g = self.batch.vectors[record.node.name]
                square = builder.emit(ir.Mean(), builder.times(g, g))
                found[layer] = builder.as_matrix(square, Structure.DIAGONAL, record.rows)
        with builder.phase("invert"):
            for layer, squares in found.items():
                inverse = self._inverse(layer)
                kappa = self.optimiser.kappa(layer)
                builder.emit(ir.DampedInverse(False), squares, kappa, into=inverse)

    def _inverse(self, layer: str) -> Value:
        spec = matrix(Structure.DIAGONAL, self.batch.graph.layers[layer].rows)
        return self.builder.state(f"rows_inverse.{layer}", spec, "one")

    def directions(self, gradients: Mapping[str, Value]) -> dict[str, Value]:
        result = {}
        for layer, gradient in gradients.items():
            columns = matrix(Structure.SCALED_IDENTITY, int(gradient.spec.shape[1]))
            one = self.builder.state(f"one.{layer}", columns, "one")
            operands = gradient, self._inverse(layer), one
            result[layer] = self.builder.emit(
                ir.Precondition(), *operands, name=f"delta_{self.batch.graph.layers[layer].node.name}"
            )
            self.builder.results.setdefault(f"delta.{layer}", result[layer].name)
        return result


def trained_by_rows(**options: object) -> tuple[Trainer, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, 64, 4)
    y = torch.stack([x.sin().sum(1), x.prod(1)], 1)
    trainer = compile_into(
        Trainer.__new__(Trainer), model, "mse", x, "kfra", solver=Rows, seed=0, backend="torch",
        precision="highest", tune="off", **options,
    )  # fmt: skip
    return trainer, x, y


@pytest.mark.parametrize("guarded", [False, True])
def test_a_solver_trains_with_the_phases_it_brings(guarded: bool) -> None:
    trainer, x, y = trained_by_rows(guarded=guarded)
    losses = [trainer.step(x, y).resolved().loss for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]
    known = names(trainer.program.step)
    assert "average" not in known
    assert known.index("gradient") < known.index("squares") < known.index("quadratic")


def test_its_direction_is_that_of_its_formula() -> None:
    trainer, x, y = trained_by_rows(damping=0.3)
    run = trainer._executable
    run.load((x,), y)
    run.run("gradient", "squares", "invert", "direction")
    first, last = trainer.model[0], trainer.model[2]  # type: ignore[index]
    h = torch.tanh(x @ first.weight.T + first.bias)
    top = h @ last.weight.T + last.bias - y  # of ½‖z − y‖², or a multiple of it
    top = top * (run.result("grad.2")[:, -1] / top.mean(0))
    below = (top @ last.weight) * (1 - h**2)
    kappa = float(run.memory.states["factor_damping"]) ** 2
    for layer, g in (("0", below), ("2", top)):
        gradient = run.result(f"grad.{layer}")
        expected = -gradient / (g.square().mean(0) + kappa)[:, None]
        torch.testing.assert_close(run.result(f"delta.{layer}"), expected, rtol=1e-10, atol=0)


def test_a_phase_that_no_list_has_is_refused() -> None:
    trainer, x, y = trained_by_rows()
    trainer._executable.load((x,), y)
    for phase in ("curvature", "gradeint"):
        with pytest.raises(InternalError, match=f"the program has no phase '{phase}'"):
            trainer._executable.run(phase)
