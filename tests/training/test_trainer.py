"""The trainer: refusals, undone steps, the optimiser's rules by independent computation, ordinary modules."""

from __future__ import annotations

import copy
import io
import math
import warnings
from typing import Any

import oracles
import pytest
import torch
from architectures import normal
from comparison import assert_close, assert_tensors
from torch import Tensor, nn
from training import (
    NETWORKS,
    OUTPUTS,
    WIDTH,
    assert_same_state,
    compiled,
    network,
    overshooting,
    samples,
    snapshot,
)

import gncompile
from gncompile.errors import BatchError, CompileError, SmallBatchWarning
from gncompile.training.order import as_read
from gncompile.training.records import StepStats
from gncompile.training.trainer import Trainer

METHODS = ("kfra", "kflr", "kfac", "adam", "sgd")
CURVATURE = ("kfra", "kflr", "kfac")

# Both backends call the same matrix products in other orders: rounding, grown over ten steps.
TRAJECTORY = 1e-10


def parameters(trainer: Trainer) -> dict[str, Tensor]:
    """A copy of the model's parameters."""
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def take(trainer: Trainer, steps: int, size: int = 16) -> list[StepStats]:
    """So many steps, each on its own samples."""
    return [trainer.step(*samples(size, seed=10 + step)) for step in range(steps)]


def twin(trainer: Trainer) -> Trainer:
    """Another trainer of the same kind in the same state."""
    other = gncompile.compile(
        copy.deepcopy(trainer.model),
        trainer.loss_function,
        torch.zeros(2, *trainer.traced.graph.inputs[0].shape, dtype=trainer.dtype),
        backend=trainer.backend,
        **vars(trainer.settings),
    )
    other.load_state_dict(snapshot(trainer))
    return other


# --- Refused batches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["input", "target"])
def test_a_bad_batch_changes_nothing(method: str, where: str) -> None:
    trainer = compiled(network(), method, average=0.9)
    take(trainer, 3)
    before = snapshot(trainer)
    x, y = samples(8)
    bad = x if where == "input" else y
    bad[5, 2] = math.nan
    bad[6, 1] = math.inf
    with pytest.raises(BatchError) as caught:
        trainer.step(x, y)
    name = "input 0" if where == "input" else "target"
    assert str(caught.value).splitlines()[0] == (
        f"the batch has 2 non-finite values in {name}, the first is nan at sample 5, feature 2"
    )
    assert "parameters and state are unchanged" in str(caught.value)
    assert_same_state(snapshot(trainer), before)


class Squashed(nn.Module):
    """Finite for every input, infinite ones included."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(x))


def test_an_infinite_input_is_refused_even_if_the_loss_is_finite() -> None:
    trainer = compiled(Squashed().double())
    x, y = samples(4)
    x[1, 0] = math.inf
    assert math.isfinite(float(trainer.loss(x, y)))
    with pytest.raises(BatchError, match="the first is inf at sample 1, feature 0"):
        trainer.step(x, y)


@pytest.mark.parametrize(
    ("x", "y", "expected", "got"),
    [
        (torch.zeros(4, 5), torch.zeros(4, OUTPUTS), "expected: [N, 6]", "got:      [4, 5]"),
        (torch.zeros(6), torch.zeros(4, OUTPUTS), "expected: [N, 6]", "got:      [6]"),
        (torch.zeros(0, 6), torch.zeros(0, OUTPUTS), "has no samples", "got:      [0, 6]"),
        (torch.zeros(4, 6), torch.zeros(4), "expected: [4, 3] float64", "got:      [4] float64"),
        (
            torch.zeros(4, 6),
            torch.zeros(3, 3),
            "expected: [4, 3] float64",
            "got:      [3, 3] float64",
        ),
        (torch.zeros(4, 6), torch.zeros(4, 3).long(), "[4, 3] float64", "got:      [4, 3] int64"),
        ((torch.zeros(4, 6),) * 2, torch.zeros(4, 3), "takes 1 inputs", "the batch has 2"),
    ],
)
def test_wrong_batches(x: Any, y: Tensor, expected: str, got: str) -> None:
    trainer = compiled(network())
    before = snapshot(trainer)
    with pytest.raises(BatchError) as caught:
        trainer.step(x, y)
    assert expected in str(caught.value)
    assert got in str(caught.value)
    assert_same_state(snapshot(trainer), before)


# --- Undone and refused updates -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kfra", "kflr", "kfac_rp", "adam", "sgd"])
def test_an_update_that_breaks_the_loss_is_undone(method: str) -> None:
    model = network(dtype=torch.float32)
    x, y = samples(16, dtype=torch.float32)
    trainer = gncompile.compile(model, "exp(z) - y*z", x, method, average=0.9)
    first = trainer.step(x, y)
    trainer.step(x, y)
    good = parameters(trainer)
    trainer.step(x, y)
    damping = trainer.damping
    with torch.no_grad():  # as if the last update had gone astray
        model[-1].bias.fill_(1e4)  # type: ignore[operator, union-attr]
    untouched = snapshot(trainer)
    stats = trainer.step(x, y)
    expected = oracles.mean_loss(_with(model, good), "exp(z) - y*z", x, y).detach()
    assert stats.loss == pytest.approx(float(expected), rel=1e-5)
    assert trainer.rejected == 1
    assert math.isfinite(float(trainer.loss(x, y)))
    assert float(trainer.loss(x, y)) < first.loss
    if damping is not None:
        # Raised by the undone update, then perhaps changed by this step's own check.
        allowed = [4 * damping * factor for factor in (0.5, 1, 2)]
        assert any(stats.damping == pytest.approx(value, rel=1e-5) for value in allowed)
        for layer in trainer.traced.graph.layers:
            key = f"G.{layer}"
            assert torch.isfinite(trainer.state_dict()["states"][key]).all()
            assert not torch.equal(trainer.state_dict()["states"][key], untouched["states"][key])


def _with(model: nn.Module, values: dict[str, Tensor]) -> nn.Module:
    other = copy.deepcopy(model)
    other.load_state_dict(values)
    return other


def test_a_loss_that_was_never_finite_is_an_error() -> None:
    model = network(dtype=torch.float32)
    with torch.no_grad():
        model[-1].bias.fill_(1e4)  # type: ignore[operator, union-attr]
    x, y = samples(16, dtype=torch.float32)
    trainer = gncompile.compile(model, "exp(z) - y*z", x)
    before = snapshot(trainer)
    with pytest.raises(BatchError, match="the loss is inf on a batch of finite values"):
        trainer.step(x, y)
    assert_same_state(snapshot(trainer), before)


def test_a_curvature_that_overflows_is_not_averaged() -> None:
    trainer = compiled(network(dtype=torch.float32))
    x, y = samples(8, dtype=torch.float32)
    damping = trainer.step(x, y).damping
    before = snapshot(trainer)
    stats = trainer.step(x * 1e25, y)  # the loss is finite behind tanh, the second moments are not
    assert math.isfinite(stats.loss)
    assert (stats.rejected, trainer.rejected, stats.update) == (1, 1, 2)
    assert stats.damping == damping  # no damping would help
    after = snapshot(trainer)
    assert_tensors(after["model"], before["model"], 0.0)
    for key, value in before["states"].items():
        if key.startswith(("Q.", "G.")):
            assert torch.equal(after["states"][key], value)
    assert trainer.step(x, y).rejected == 1


# --- Batch sizes, dtypes, backends --------------------------------------------------------------------


@pytest.mark.parametrize("method", CURVATURE)
def test_any_batch_size_at_any_time(method: str, backend: str) -> None:
    trainer = compiled(network(), method, backend=backend)
    for step, size in enumerate((7, 33, 1, 16, 2, 64, 33)):
        fresh = twin(trainer)
        batch = samples(size, seed=step)
        assert trainer.step(*batch) == fresh.step(*batch)
        assert_same_state(snapshot(trainer), snapshot(fresh))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("method", CURVATURE)
def test_backends_take_the_same_steps(name: str, method: str) -> None:
    trainers = [compiled(network(name), method, backend=b) for b in ("reference", "torch")]
    for batch in (samples(12, seed=step) for step in range(10)):
        losses = [trainer.step(*batch).loss for trainer in trainers]
        assert losses[0] == pytest.approx(losses[1], rel=TRAJECTORY)
    reference, emitted = map(parameters, trainers)
    assert_tensors(emitted, reference, TRAJECTORY)


@pytest.mark.parametrize("method", ["kfra", "kflr", "adam"])
def test_single_precision_follows_double(method: str) -> None:
    double = compiled(network(), method)
    single = compiled(network(dtype=torch.float32), method)
    for step in range(5):
        batch = samples(32, seed=step)
        expected = double.step(*batch).loss
        # Rounding 1e-7, times the condition of the damped factors.
        assert single.step(*(t.float() for t in batch)).loss == pytest.approx(expected, rel=1e-3)
    assert {p.dtype for p in single.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_training_learns(method: str) -> None:
    rate = {"learning_rate": 0.1} if method in ("adam", "sgd") else {}
    trainer = compiled(network(), method, **rate)
    x, y = samples(200)
    first = trainer.evaluate(x, y)
    floor = float(-(torch.xlogy(y, y) + torch.xlogy(1 - y, 1 - y)).sum() / len(y))
    for _ in range(40):
        trainer.step(x, y)
    assert trainer.evaluate(x, y) - floor < 0.25 * (first - floor)


# --- The rules of a step ------------------------------------------------------------------------------


def layer_steps(trainer: Trainer) -> dict[str, Tensor]:
    """δ of the last step by layer."""
    states = trainer.state_dict()["states"]
    return {layer: states[f"step.{layer}"].clone() for layer in trainer.traced.graph.layers}


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_step_size_and_momentum_minimise_the_quadratic(name: str, momentum: bool) -> None:
    # With this damping, kept, the momentum lies within its bounds.
    trainer = compiled(network(name), momentum=momentum, l2=0.01, damping=0.1, search_steps=0)
    take(trainer, 6)
    before, last = twin(trainer), layer_steps(trainer)
    x, y = samples(20, seed=77)
    stats = trainer.step(x, y)
    c1, c2 = stats.step_size, stats.momentum or 0.0
    assert c1 is not None
    # δ = c₁ Δ + c₂ δ_prev
    delta = {layer: (new - c2 * last[layer]) / c1 for layer, new in layer_steps(trainer).items()}
    along = [before.compiled.split(delta)] + ([before.compiled.split(last)] if momentum else [])
    M, b = before.quadratic(x, y, along)
    c = torch.linalg.solve(M, -b)
    assert_close(torch.tensor([c1, c2][: len(c)], dtype=torch.float64), c, 1e-8, "step sizes")
    assert stats.predicted == pytest.approx(float(b @ c + c @ M @ c / 2), rel=1e-8)
    # The same quadratic by torch.func.
    full, slope = oracles.gauss_newton_products(before.model, "bce_with_logits", x, y, along)
    flat = torch.stack([torch.cat([t.flatten() for t in d.values()]) for d in along])
    assert before.damping is not None
    assert_close(M, full + (before.damping + 0.01) * flat @ flat.T, 1e-9, "M")
    named = parameters(before)
    decay = [sum(float((d[k] * named[k]).sum()) for k in d) for d in along]
    assert_close(b, slope + 0.01 * torch.tensor(decay, dtype=torch.float64), 1e-9, "b")


def test_step_cap() -> None:
    free, capped = (
        compiled(network(), step_cap=cap, step_growth=None, damping=10.0) for cap in (None, 0.3)
    )
    sizes = [[s.step_size for s in take(trainer, 5)] for trainer in (free, capped)]
    assert max(sizes[0]) > 0.4
    assert max(sizes[1]) == pytest.approx(0.3)  # a weighted mean of equal numbers


def test_damping_stays_within_its_bounds() -> None:
    trainer = compiled(network(), damping=0.1, damping_bounds=(0.09, 0.11), damping_period=1)
    seen = {stats.damping for stats in take(trainer, 12)}
    assert 0.09 in seen
    assert all(0.09 <= float(d or 0) <= 0.11 for d in seen)


@pytest.mark.parametrize("l2", [0.3, {"*.weight": 0.3, "0.*": 0.7}])
def test_l2_is_that_of_the_penalised_loss(l2: float | dict[str, float], backend: str) -> None:
    model = network()
    trainer = compiled(model, l2=l2, backend=backend)
    x, y = samples(9)
    etas = dict.fromkeys(dict(model.named_parameters()), 0.3)
    if isinstance(l2, dict):  # the last pattern that matches counts; "4.bias" has none
        etas |= {"0.weight": 0.7, "0.bias": 0.7, "4.bias": 0.0}
    penalty = sum(etas[n] / 2 * p.square().sum() for n, p in model.named_parameters())
    objective = oracles.mean_loss(model, "bce_with_logits", x, y) + penalty
    names, values = zip(*model.named_parameters(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(objective, values), strict=True))
    assert_tensors(trainer.gradients(x, y), expected)
    stats = trainer.step(x, y)
    assert stats.objective == pytest.approx(float(objective), rel=1e-12)
    assert stats.loss == pytest.approx(float(objective - penalty), rel=1e-12)


@pytest.mark.parametrize("method", CURVATURE)
def test_parameters_are_averaged(method: str) -> None:
    trainer = compiled(network(), method, average=0.6)
    mean: dict[str, Tensor] = {}
    for number in range(1, 8):
        weight = min(1 - 9 / (number + 8), 0.6)
        for name, value in parameters(trainer).items():
            mean[name] = weight * mean.get(name, 0 * value) + (1 - weight) * value
        trainer.step(*samples(10, seed=number))
    now = parameters(trainer)
    with trainer.averaged_parameters():
        assert_tensors(parameters(trainer), mean, 1e-12)
    assert_tensors(parameters(trainer), now, 0.0)
    x, y = samples(30)
    averaged = oracles.mean_loss(_with(trainer.model, mean), "bce_with_logits", x, y)
    assert trainer.evaluate(x, y, averaged=True) == pytest.approx(float(averaged), rel=1e-12)
    current = oracles.mean_loss(trainer.model, "bce_with_logits", x, y)
    assert trainer.evaluate(x, y, batch_size=7, averaged=False) == pytest.approx(float(current))


def test_an_overshooting_update_is_undone(backend: str) -> None:
    trainer, x, y = overshooting(backend=backend)
    good = parameters(trainer)
    first = trainer.step(x, y)
    assert first.rejected == 0
    assert not math.isfinite(float(trainer.loss(x, y)))
    second = trainer.step(x, y)
    assert (second.rejected, second.loss) == (1, first.loss)
    assert second.damping is not None
    assert second.damping > 1e-8
    trainer._steps.looked_after.undo()
    assert_tensors(parameters(trainer), good, 0.0)


def test_an_undone_update_leaves_no_trace_in_the_average(backend: str) -> None:
    trainer, x, y = overshooting(backend=backend)
    good = parameters(trainer)
    for _ in range(2):  # the second step undoes the first, and makes the same
        trainer.step(x, y)
        assert not math.isfinite(float(trainer.loss(x, y)))
        with trainer.averaged_parameters():
            assert_tensors(parameters(trainer), good, 0.0)


def one_layer(**options: Any) -> tuple[Trainer, Tensor, Tensor]:
    """A trainer of one affine layer, with samples."""
    torch.manual_seed(3)
    model = nn.Linear(WIDTH, OUTPUTS).double()
    return compiled(nn.Sequential(model), momentum=False, **options), *samples(20)


def test_exact_damping_is_the_damped_kronecker_product() -> None:
    trainer, x, y = one_layer(inverse="eigen", damping=0.3, l2=0.05)
    gradient = trainer.compiled.join(trainer.gradients(x, y))["0"]
    stats = trainer.step(x, y)
    factors = trainer.factors()["0"]
    block = torch.kron(factors.output, factors.input)
    kappa = 0.125 * torch.eye(len(block)).double()
    delta = -torch.linalg.solve(block + kappa, gradient.flatten()).reshape(gradient.shape)
    assert stats.step_size is not None
    assert_close(layer_steps(trainer)["0"], stats.step_size * delta, 1e-9, "step")


def test_factored_damping() -> None:
    trainer, x, y = one_layer(damping=0.3, l2=0.05)
    gradient = trainer.compiled.join(trainer.gradients(x, y))["0"]
    stats = trainer.step(x, y)
    Q, G = trainer.factors()["0"].input, trainer.factors()["0"].output
    pi = ((Q.trace() / len(Q)) / (G.trace() / len(G))).sqrt()
    damped_q = Q + pi * math.sqrt(0.125) * torch.eye(len(Q)).double()
    damped_g = G + math.sqrt(0.125) / pi * torch.eye(len(G)).double()
    delta = -torch.linalg.inv(damped_g) @ gradient @ torch.linalg.inv(damped_q)
    assert stats.step_size is not None
    assert_close(layer_steps(trainer)["0"], stats.step_size * delta, 1e-9, "step")


def test_factors_are_averaged() -> None:
    trainer = compiled(network(), "kflr", factor_average=0.5)
    mean: dict[str, Tensor] = {}
    for number in range(1, 6):
        x, y = samples(10, seed=number)
        batch = gncompile.curvature(trainer.model, "bce_with_logits", x, y, "kflr")
        trainer.step(x, y)
        epsilon = min(1 - 4 / (number + 3), 0.5)
        for layer, now in batch.items():
            for kind, value in (("Q", now.input), ("G", now.output)):
                key = f"{kind}.{layer}"
                mean[key] = epsilon * mean.get(key, 0 * value) + (1 - epsilon) * value
    got = {
        f"{k}.{n}": v
        for n, f in trainer.factors().items()
        for k, v in (("Q", f.input), ("G", f.output))
    }
    assert_tensors(got, mean, 1e-10)


@pytest.mark.parametrize("method", ["kfra", "kflr", "empirical"])
@pytest.mark.parametrize("backend", ["torch", "reference"])
@pytest.mark.parametrize("whole", [0, 1])
def test_the_factors_may_use_a_share_of_the_batch(method: str, backend: str, whole: int) -> None:
    """Input factors only after the first ``whole_inputs`` steps."""
    options = {"factor_share": 0.3, "factor_samples": 2, "trace_correction": False}
    options |= {"whole_inputs": whole, "factor_average": 0.0, "factors_every": 1, "damping": 10.0}
    trainer = compiled(network(), method, backend=backend, **options)
    x, y = samples(20, seed=1)
    for step in range(2):
        last = (part[-6:] for part in as_read(trainer, x, y))
        share = gncompile.curvature(trainer.model, "bce_with_logits", *last, method)
        all_of_it = gncompile.curvature(trainer.model, "bce_with_logits", x, y, method)
        trainer.step(x.clone(), y)
        inputs = all_of_it if step < whole else share
        for layer, got in trainer.factors().items():
            assert_close(got.input, inputs[layer].input, 1e-10, f"Q of {layer}")
            assert_close(got.output, share[layer].output, 1e-10, f"G of {layer}")


def test_layers_that_share_an_input_share_its_factor() -> None:
    """The gated network's first two layers: of the share, and of the whole batch."""
    program = compiled(network("gated"), factor_samples=2)._executable.program
    for phase in ("share_inputs", "whole_inputs"):
        moments = [i.inputs for i in program.phase(phase) if i.name.startswith("Q_")]
        assert len(moments) == len(set(moments)) == 2


def test_no_value_is_called_like_a_phase() -> None:
    for guarded in (False, True):
        program = compiled(network(), "kflr", guarded=guarded)._executable.program
        assert not {i.name for i in program} & set(program.phases)


def test_inverses_are_refreshed_when_due() -> None:
    trainer = compiled(network(), refresh_every=4, refresh_always=3, damping=1.0)
    changed, last = [], None
    for step in range(1, 18):
        trainer.step(*samples(40, seed=step))
        inverse = trainer.state_dict()["states"]["Q_inverse.0"].clone()
        if last is None or not torch.equal(inverse, last):
            changed.append(step)
        last = inverse
    assert changed == [1, 2, 3, 5, 7, 9, 13, 17]  # each step, then each second, then each fourth


@pytest.mark.parametrize(("by_layer", "rows"), [(0, 5), (1, 3)])
def test_the_quadratic_may_use_a_share_of_the_batch(by_layer: int, rows: int) -> None:
    """Step sizes of the layers, here of one layer, half of that share, rounded up."""
    trainer, x, y = one_layer(layer_steps=by_layer, quadratic_share=0.25, quadratic_samples=2)
    before = twin(trainer)
    first = [part[:rows] for part in as_read(trainer, x, y)]
    stats = trainer.step(x, y)
    assert stats.step_size is not None
    along = [before.compiled.split({"0": layer_steps(trainer)["0"] / stats.step_size})]
    M, _ = before.quadratic(*first, along)
    _, b = before.quadratic(x, y, along)
    assert stats.step_size == pytest.approx(float(-b / M), rel=1e-9)


def test_the_seed_decides_what_kfac_samples() -> None:
    a, b, c = (compiled(network(), "kfac", seed=seed) for seed in (1, 1, 2))
    losses = [[stats.loss for stats in take(trainer, 4)] for trainer in (a, b, c)]
    assert losses[0] == losses[1]
    assert losses[0][0] == losses[2][0]
    assert losses[0] != losses[2]


# --- The user's model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_frozen_parameters_stay(method: str) -> None:
    model = network("residual")
    model.first.requires_grad_(False)  # type: ignore[union-attr, operator]
    model.last.bias.requires_grad_(False)  # type: ignore[union-attr, operator]
    trainer = compiled(model, method, l2=0.1)
    frozen = {"first.weight", "first.bias", "last.bias"}
    before = parameters(trainer)
    take(trainer, 4)
    after = parameters(trainer)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == set(after) - frozen
    assert not frozen & set(trainer.gradients(*samples(5)))


@pytest.mark.parametrize("method", ["kfra", "adam"])
def test_the_model_stays_an_ordinary_module(method: str) -> None:
    model = network()
    own = dict(model.named_parameters())
    addresses = {name: p.data_ptr() for name, p in own.items()}
    trainer = compiled(model, method)
    take(trainer, 3)
    for name, p in model.named_parameters():
        assert p is own[name]
        assert p.data_ptr() == addresses[name]
        assert p.requires_grad
        assert p.is_leaf
    x, y = samples(5)
    assert_close(trainer.predict(x), model(x).detach(), 1e-12, "output")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = network(seed=9)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other(x), model(x))
    model.zero_grad()
    oracles.mean_loss(model, "bce_with_logits", x, y).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_changes_to_the_model_between_steps_are_seen() -> None:
    trainer = compiled(network())
    take(trainer, 2)
    with torch.no_grad():
        for p in trainer.model.parameters():
            p.mul_(1.5)
    x, y = samples(12)
    expected = float(oracles.mean_loss(trainer.model, "bce_with_logits", x, y))
    assert trainer.step(x, y).loss == pytest.approx(expected, rel=1e-12)


def test_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(2, 4), nn.Linear(3, 4)
            self.c = nn.Linear(4, 1)

        def forward(self, u: Tensor, v: Tensor) -> Tensor:
            return self.c(torch.tanh(self.a(u) + self.b(v)))

    generator = torch.Generator().manual_seed(0)
    x = normal(generator, 9, 2), normal(generator, 9, 3)
    model = Two().double()
    trainer = gncompile.compile(model, "mse", x)
    y = normal(generator, 9, 1)
    error = model(*x).detach() - y
    first = trainer.step(x, y).loss
    assert first == pytest.approx(float(0.5 * error.square().sum() / 9))
    for _ in range(10):
        trainer.step(x, y)
    assert trainer.evaluate(x, y, batch_size=4) < first
    with pytest.raises(BatchError, match="different batch sizes"):
        trainer.step((x[0][:3], x[1]), y)


def test_unknown_options_are_named() -> None:
    with pytest.raises(CompileError, match="Did you mean 'damping'"):
        compiled(network(), dampng=1.0)
    with pytest.raises(CompileError, match="damping_rate = 1.5"):
        compiled(network(), damping_rate=1.5)
    with pytest.raises(CompileError, match="unknown method 'kfar'. Did you mean 'kfra'"):
        compiled(network(), "kfar")


# --- small batches ------------------------------------------------------------------------------------


def test_small_minibatches_bring_one_warning() -> None:
    trainer = compiled(network())
    with pytest.warns(SmallBatchWarning, match="steps on 31 samples\n.*trainer.gather") as caught:
        take(trainer, 4, size=31)
    assert len(caught) == 1
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("size", "method"), [(32, "kfra"), (1, "adam")])
def test_other_batches_bring_no_warning(size: int, method: str) -> None:
    trainer = compiled(network(), method)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SmallBatchWarning)
        take(trainer, 4, size=size)


def test_a_small_full_batch_brings_no_warning() -> None:
    trainer, batch = compiled(network()), samples(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SmallBatchWarning)
        for _ in range(4):
            trainer.step(*batch)
