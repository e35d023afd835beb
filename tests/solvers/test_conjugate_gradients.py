"""The solvers by conjugate gradients against dense solutions with ``torch.func``, and their counts."""

from __future__ import annotations

import copy
from pathlib import Path

import oracles
import pytest
import torch
from architectures import normal
from comparison import assert_close
from exact_problems import EXACT, SHARED, Dense, assert_same, problems, shared
from hypothesis import given, settings
from problems import EVERY_LOSS
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import gncompile
from gncompile.errors import CompileError
from gncompile.program.costs import CostModel
from gncompile.training.trainer import Trainer

ONE_DIRECTION = {"momentum": False, "layer_steps": 0, "average": 0.0, "step_growth": None}
"""The step is a multiple of the direction."""
QUIET = {**ONE_DIRECTION, "search_steps": 0, "damping_period": 5, "damping": 1e-2}
"""λ stays as it is for four steps, and none is undone, whatever the loss does."""


def compiled(model: nn.Module, loss: str, x: Tensor, solver: str, **options: object) -> Trainer:
    return gncompile.compile(
        model, EVERY_LOSS[loss].argument, x, solver=solver, tune="off", **options
    )


def direction(trainer: Trainer, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Δ by parameter name, of a step that goes along it alone."""
    before = oracles.parameters(trainer.model)
    before = {name: value.clone() for name, value in before.items()}
    stats = trainer.step(x, y).resolved()
    after = oracles.parameters(trainer.model)
    assert not stats.rejected
    return {name: (after[name] - value) / stats.step_size for name, value in before.items()}


def once(
    model: nn.Module, loss: str, x: Tensor, y: Tensor, solver: str, **options: object
) -> dict[str, Tensor]:
    """The first direction, with λ of 0.01."""
    given = {**QUIET, "cg_iterations": 200, "cg_tolerance": 0.0, "curvature_share": 1.0, **options}
    return direction(compiled(copy.deepcopy(model), loss, x, solver, **given), x, y)


@given(problem=problems())
@settings(max_examples=1)
def test_the_direction_is_the_dense_solution(
    problem: tuple[nn.Module, str, Tensor, Tensor, object],
) -> None:
    model, loss, x, y, l2 = problem
    dense = Dense(model, loss, x, y, len(x))
    found = once(model, loss, x, y, "newton_cg", l2=l2)
    assert_same(found, dense.solve(1e-2, l2), EXACT, f"{loss}, l2={l2}, in {model}")


BLOCKS = {
    "tied": (["scale"], ["code.weight"], ["code.bias"]),  # the transposed use has none of the bias
    "groups": (["0.weight", "0.bias"], ["2.weight"]),
    "embedding": (["0.weight"], ["2.weight", "2.bias"]),
}


@pytest.mark.parametrize("name", SHARED)
def test_blocks_of_layers_with_several_uses(name: str) -> None:
    model, x, y, loss = shared(name)
    l2 = {"*bias": 0.2, "*weight": 0.03}
    dense = Dense(model, loss, x, y, len(x))
    found = once(model, loss, x, y, "block_hessian_free", l2=l2)
    assert_same(found, dense.solve(1e-2, l2, BLOCKS[name]), EXACT, name)


def chain(width: int = 5, seed: int = 0) -> nn.Sequential:
    """Three layers; the last in a module of its own."""
    torch.manual_seed(seed)
    layers = [nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Sequential(nn.Linear(width, 2))).double()


def batch(samples: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = normal(generator, samples, 3)
    return x, torch.stack([x.sin().sum(1), x.prod(1)], 1)


class Thousand(nn.Module):
    """Thousand times."""

    def forward(self, x: Tensor) -> Tensor:
        return 1000 * x


PAIRS = {"0": "lower", "2": "lower", "4.*": "upper"}


def test_a_block_is_that_of_the_group() -> None:
    model, (x, y) = chain(), batch()
    dense = Dense(model, "mse", x, y, len(x))
    blocks = [[n for n in dense.names if (n[0] == "4") == upper] for upper in (False, True)]
    found = once(model, "mse", x, y, "block_hessian_free", blocks=PAIRS)
    assert_same(found, dense.solve(1e-2, blocks=blocks), EXACT, "groups")


@pytest.mark.parametrize(
    ("share", "backend"), [(0.25, "torch"), (0.25, "reference"), (1.0, "torch")]
)
def test_products_are_those_of_the_last_samples(share: float, backend: str) -> None:
    model, (x, y) = chain(), batch()
    given = {**QUIET, "cg_iterations": 80, "cg_tolerance": 0.0, "curvature_share": share}
    trainer = compiled(copy.deepcopy(model), "mse", x, "newton_cg", backend=backend, **given)
    found, run = direction(trainer, x, y), trainer._executable
    leaves = (*run.program.leaves("input"), *run.program.leaves("target"))
    read = [run.step.value(leaf.name).clone() for leaf in leaves]  # in the order of the step
    expected = Dense(model, "mse", *read, round(16 * share)).solve(1e-2)
    assert_same(found, expected, EXACT, f"{share} of the batch")


def textbook(
    matrix: Tensor, slope: Tensor, tolerance: float, bound: int, first: Tensor | None = None
) -> tuple[Tensor, int, float]:
    """Hestenes and Stiefel's d, products, and ‖r‖/‖∇‖; warm, after a search along ``first``."""
    d, r, products = torch.zeros_like(slope), -slope, 0
    if first is not None:
        d = first * (first @ r) / (first @ matrix @ first)
        r, products = r - matrix @ d, 1
    p = r
    while r.norm() > tolerance * slope.norm() and products < bound:
        q, square = matrix @ p, r @ r
        d, r = d + p * (square / (p @ q)), r - q * (square / (p @ q))
        p, products = r + p * ((r @ r) / square), products + 1
    return d, products, float(r.norm() / slope.norm())


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("guarded", [False, True])
def test_products_are_counted_and_end_where_they_should(warm: bool, guarded: bool) -> None:
    model, (x, y) = chain(), batch()
    given = {**QUIET, "cg_tolerance": 0.05, "curvature_share": 1.0, "cg_iterations": 9}
    trainer = compiled(model, "mse", x, "newton_cg", warm_start=warm, guarded=guarded, **given)
    last, counts = None, []
    for _ in range(4):
        dense = Dense(model, "mse", x, y, len(x))
        before = dense.flat(dense.at).clone()
        d, products, left = textbook(*dense.system(1e-2), 0.05, 9, last)
        stats = trainer.step(x, y).resolved()
        last = dense.flat(oracles.parameters(model)) - before
        assert (stats.products, stats.residual) == (products, pytest.approx(left, rel=1e-6))
        assert_close(last / stats.step_size, d, 1e-8, "the direction")
        last, counts = last if warm else None, [*counts, products]
    assert min(counts) < 9 == max(counts)


def test_one_block_is_newton_cg() -> None:
    given = {**ONE_DIRECTION, "cg_iterations": 7, "cg_tolerance": 0.0, "warm_start": True}
    losses = []
    for solver, blocks in (("newton_cg", {}), ("block_hessian_free", {"blocks": {"*": "all"}})):
        x, y = batch()
        trainer = compiled(chain(), "mse", x, solver, curvature_share=1.0, **given, **blocks)
        losses.append([trainer.step(x, y).loss for _ in range(6)])
    assert losses[0] == losses[1]
    assert losses[0][-1] < 0.5 * losses[0][0]


def test_factors_save_products() -> None:
    """Inputs of scales from 0.01 to 30: the factor Q undoes them, and plain products do not."""
    generator, products = torch.Generator().manual_seed(0), {}
    x = normal(generator, 300, 12) * torch.logspace(-2, 1.5, 12, dtype=torch.float64)
    y = normal(generator, 300, 3)
    for preconditioner in ("none", "kronecker"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 6), nn.Softplus(), nn.Linear(6, 3)).double()
        given = {**QUIET, "cg_tolerance": 1e-6, "curvature_share": 1.0, "cg_iterations": 500}
        given |= {"preconditioner": preconditioner, "damping": 1e-6}
        trainer = compiled(model, "mse", x, "newton_cg", **given)
        products[preconditioner] = trainer.step(x, y).resolved().products
    assert 0 < products["kronecker"] < 0.5 * products["none"]


def test_a_resumed_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    given = {"curvature_share": 0.5, "preconditioner": "kronecker", "blocks": PAIRS}
    (x, y), trainer = batch(), compiled(chain(), "mse", batch()[0], "block_hessian_free", **given)
    for _ in range(3):
        trainer.step(x, y)
    trainer.save(tmp_path / "checkpoint")
    resumed = gncompile.Trainer.resume(tmp_path / "checkpoint", chain(seed=1))
    assert resumed.settings == trainer.settings
    for _ in range(3):
        assert resumed.step(x, y) == trainer.step(x, y)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("warm", [False, True])
def test_what_overflows_breaks_nothing_and_what_is_solved_stands_still(
    warm: bool, guarded: bool
) -> None:
    model, (x, y) = nn.Sequential(chain(), Thousand()).float(), (t.float() for t in batch())
    given = {"guarded": guarded, "warm_start": warm, "curvature_share": 1.0}
    trainer = compiled(model, "mse", x, "newton_cg", **given)
    trainer.step(x, y)
    before = oracles.parameters(model)
    before = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():
        z = model(x)
    assert trainer.step(x, z).resolved().step_size == 0  # without a gradient there is nothing to do
    for name, value in oracles.parameters(model).items():
        assert torch.equal(value, before[name])
    stats = trainer.step(x, 1e17 * y).resolved()  # the squares of ∇ overflow
    if warm:  # along δ there is a step
        assert (stats.products, stats.residual) == (1, 1)
    else:
        assert stats.rejected
    assert all(value.isfinite().all() for value in oracles.parameters(model).values())
    stats = trainer.step(x, y).resolved()
    assert 0 < stats.residual <= 0.1
    assert stats.predicted < 0 < stats.products


def test_blocks_have_to_cover_all_layers() -> None:
    x, _ = batch()
    with pytest.raises(CompileError, match=r"blocks names none for 4\.0"):
        compiled(chain(), "mse", x, "block_hessian_free", blocks={"0": "a", "2": "b"})
    with pytest.raises(CompileError, match=r"no layer matches the pattern '5' of blocks"):
        compiled(chain(), "mse", x, "block_hessian_free", blocks={"*": "a", "5": "b"})
    with pytest.raises(CompileError, match="gather_noise"):
        compiled(chain(), "mse", x, "newton_cg", gather_noise=0.5)


def test_costs_count_every_product() -> None:
    x, _ = batch()
    few, many = (
        compiled(chain(), "mse", x, "newton_cg", cg_iterations=n)._executable.program
        for n in (1, 9)
    )
    one, nine = (CostModel(program, 16).phase("cg_product") for program in (few, many))
    assert nine == one * 9
    assert "cg_product" in compiled(chain(), "mse", x, "newton_cg").summary()


@pytest.mark.parametrize("drops", [True, False])
def test_masks_and_parameters_without_a_rule(drops: bool) -> None:
    """Masks are those of the gradient, and weight norm's parameters take their own direction."""
    x, y = batch()
    losses = {}
    for backend in ("torch", "reference"):
        torch.manual_seed(0)
        first = nn.Linear(3, 8) if drops else weight_norm(nn.Linear(3, 8))
        model = nn.Sequential(first, nn.Tanh(), nn.Dropout(0.3 * drops), nn.Linear(8, 2)).double()
        trainer = compiled(model, "mse", x, "block_hessian_free", backend=backend)
        losses[backend] = [trainer.step(x, y).loss for _ in range(4)]
    assert losses["torch"] == pytest.approx(losses["reference"], rel=1e-9)
    assert losses["torch"][-1] < 0.7 * losses["torch"][0]
