"""Networks with a frozen trunk: the head is trained as on features that were computed before."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gncompile
from gncompile.errors import CompileError, ModelChangedError, TraceError
from gncompile.frontends.torch_export import trace
from gncompile.training.trainer import Trainer

N = 48


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False).eval()


class Convolutions(nn.Module):
    """A residual block, as of an image network, under ``no_grad`` or only frozen."""

    inputs = ((1, 8, 8),)

    def __init__(self, without_gradients: bool) -> None:
        super().__init__()
        stem = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.stem = frozen(nn.Sequential(*stem))
        self.block = frozen(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)))
        self.without_gradients = without_gradients
        self.head = nn.Sequential(nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 2))

    def features(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.without_gradients):
            h = self.stem(x)
            h = functional.max_pool2d(torch.relu_(h + self.block(h)), 4)
            return h.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.features(x))
        return z


class Recurrent(nn.Module):
    """An LSTM, and data that meets the head as it is."""

    inputs = ((7, 3), (2,))

    def __init__(self) -> None:
        super().__init__()
        self.lstm = frozen(nn.LSTM(3, 5, num_layers=2, batch_first=True, bidirectional=True))
        self.head = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 2))

    def features(self, x: Tensor, given: Tensor) -> Tensor:
        states, _ = self.lstm(x)
        return torch.cat([states[:, -1], given.sin()], dim=1)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        z: Tensor = self.head(self.features(x, given))
        return z


MODELS: dict[str, Callable[[], nn.Module]] = {
    "no_grad": lambda: Convolutions(True),
    "frozen": lambda: Convolutions(False),
    "recurrent": Recurrent,
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MODELS[name]().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model


def batch(model: nn.Module, seed: int = 1) -> tuple[tuple[Tensor, ...], Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = model.inputs
    x = tuple(torch.randn(N, *shape, generator=draw, dtype=torch.float64) for shape in shapes)  # type: ignore
    return x, torch.randn(N, 2, generator=draw, dtype=torch.float64)


def compiled(model: nn.Module) -> Trainer:
    return gncompile.compile(model, "mse", tuple(x[:1] for x in batch(model)[0]), seed=3)


@pytest.mark.parametrize("name", MODELS)
def test_trained_bit_for_bit_as_on_features(name: str) -> None:
    """Where the frozen part is compiled with the rest, its sums are taken in another order."""
    model = made(name)
    rounding = 0.0 if compiled(model).traced.trunk else 1e-12

    def approx(loss: float) -> object:
        return pytest.approx(float(loss), rel=rounding, abs=0.0)

    head = copy.deepcopy(model.head)
    trainer = compiled(model)
    expected = gncompile.compile(head, "mse", torch.zeros(1, head[0].in_features).double(), seed=3)
    for number in range(3):
        x, y = batch(model, number)
        with torch.no_grad():
            features = model.features(*x)
        kept = [each.clone() for each in x]
        assert trainer.step(x, y).loss == approx(expected.step(features, y).loss)
        assert all(map(torch.equal, x, kept))
    for p, q in zip(model.head.parameters(), head.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=rounding, atol=rounding)
    after = expected.evaluate(features, y, batch_size=N)
    assert trainer.evaluate(x, y, batch_size=N) == approx(after)
    trainer.finish()
    z = model(*x).detach()
    torch.testing.assert_close(trainer.predict(x), z)
    gradient = torch.autograd.grad((model(*x) - y).square().sum() / 2 / N, model.head[0].weight)[0]
    torch.testing.assert_close(trainer.gradients(x, y)["head.0.weight"], gradient)


def test_resumed_with_the_trunk_of_the_checkpoint(tmp_path: Path) -> None:
    model = made("no_grad")
    trainer = compiled(model)
    trainer.step(*batch(model))
    trainer.save(tmp_path / "saved")
    torch.manual_seed(9)
    other = Convolutions(True).double()
    resumed, twin = Trainer.resume(tmp_path / "saved", other), copy.deepcopy(trainer)
    assert torch.equal(other.stem[0].weight, model.stem[0].weight)
    losses = {each.step(*batch(model, 2)).loss for each in (trainer, resumed, twin)}
    assert len(losses) == 1


def test_the_trunk_is_followed_to_other_weights() -> None:
    model, (x, _) = made("no_grad"), batch(made("no_grad"))
    trainer = compiled(model)
    before = trainer.predict(x)
    with torch.no_grad():
        model.stem[0].weight.mul_(2)
    torch.testing.assert_close(trainer.predict(x), model(*x).detach())
    model.block[0].weight.data = torch.randn_like(model.block[0].weight)
    torch.testing.assert_close(trainer.predict(x), model(*x).detach())
    model.stem[1].running_mean.add_(1)
    torch.testing.assert_close(trainer.predict(x), model(*x).detach())
    model.load_state_dict(made("no_grad").state_dict())
    torch.testing.assert_close(trainer.predict(x), before)


def test_another_trunk_is_another_function() -> None:
    model, (x, y) = made("no_grad"), batch(made("no_grad"))
    trainer = compiled(model)
    model.stem[2] = nn.ELU()
    with pytest.raises(ModelChangedError, match="frozen part .* another function"):
        trainer.step(x, y)


def test_a_trunk_that_learns_again_is_refused() -> None:
    model, (x, y) = made("no_grad"), batch(made("no_grad"))
    trainer = compiled(model)
    model.stem[0].weight.requires_grad_(True)
    with pytest.raises(ModelChangedError, match=r"'stem\.0\.weight' was unfrozen"):
        trainer.step(x, y)


def test_batch_norm_of_the_trunk_in_training_mode() -> None:
    model = made("no_grad").train()
    with pytest.raises(TraceError, match="batch norm in training mode mixes samples"):
        compiled(model)


# --- small networks around an operator that has no rule --------------------------------------------


class Around(nn.Module):
    """``function`` of the input, then a trained layer."""

    def __init__(self, function: Callable[[Around, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.fixed = nn.Linear(4, 4).requires_grad_(False)
        self.head, self.other = nn.Linear(4, 2), nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.head(self.function(self, x))
        return z


def sorted_rows(m: Around, x: Tensor) -> Tensor:
    return m.fixed(x).sort(dim=1).values


def written(m: Around, x: Tensor) -> Tensor:
    h = sorted_rows(m, x)
    x.mul_(2)
    h[:, 0] = 0.0
    h.relu_()
    return h + x


TRUNKS = {
    "sorted": sorted_rows,
    "in place": written,
    "joined again": lambda m, x: sorted_rows(m, x) * m.other(x) + x,
    "chosen by numbers": lambda m, x: torch.gather(x, 1, x.argsort(dim=1)),
    "after constants": lambda m, x: sorted_rows(m, x) + m.fixed.weight.sort().values[0],
    "a dropout between": lambda m, x: functional.dropout(sorted_rows(m, x), 0.5),
}


@pytest.mark.parametrize("function", TRUNKS.values(), ids=TRUNKS.keys())
def test_code_without_rules(function: Callable[[Around, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Around(function).double()
    if function is not TRUNKS["joined again"]:
        model.other.requires_grad_(False)
    x, y = torch.randn(N, 4).double(), torch.randn(N, 2).double()
    trainer = gncompile.compile(model, "mse", x[:1])
    assert trainer.traced.trunk is not None
    trainer.step(x, y)
    trainer.finish()
    if function is not TRUNKS["a dropout between"]:
        torch.testing.assert_close(trainer.predict(x), model(x.clone()).detach())


REFUSED = {
    "mixing": (lambda m, x: m.other(x) + sorted_rows(m, x - x.mean(0)), "for a sample alone than"),
    "the batch first": (lambda m, x: sorted_rows(m, x).sum(0, keepdim=True) + m.other(x), "mixes"),
    "random": (lambda m, x: sorted_rows(m, x) + torch.rand_like(x), "random numbers"),
    "dropout": (lambda m, x: functional.dropout(x, 0.5).sort().values, "sort"),
    "counting": (
        lambda m, x: sorted_rows(m, x) + m.count.add_(1.0),
        "changes the buffer|something else at every call",
    ),
    "whole numbers": (
        lambda m, x: m.other(x) * x.argmax(dim=1, keepdim=True),
        "brings torch.int64",
    ),
    "the trained part": (lambda m, x: m.other(sorted_rows(m, x)).sort().values, "sort cannot be"),
    "no_grad around what is trained": (
        lambda m, x: torch.no_grad()(lambda: m.other(sorted_rows(m, x)))(),
        r"torch\.no_grad\(\) inside forward cuts the gradient",
    ),
}


@pytest.mark.parametrize(("function", "found"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(function: Callable[[Around, Tensor], Tensor], found: str) -> None:
    with pytest.raises(TraceError, match=found):
        trace(Around(function).double(), torch.randn(3, 4).double())


def test_nothing_is_trained() -> None:
    model = frozen(Around(sorted_rows)).double()
    with pytest.raises(CompileError):
        gncompile.compile(model, "mse", torch.randn(3, 4).double())


def test_what_can_be_compiled_as_a_whole_is_no_trunk() -> None:
    model = Around(lambda m, x: torch.tanh(m.fixed(x / 255))).double()
    model.other.requires_grad_(False)
    assert trace(model, torch.randn(3, 4).double()).trunk is None


def test_statistics_that_a_trunk_would_keep_are_refused() -> None:
    model = Around(lambda m, x: m.other(x) + m.norm(sorted_rows(m, x).unsqueeze(1)).squeeze(1))
    model.norm = nn.InstanceNorm1d(1, track_running_stats=True)
    with pytest.raises(TraceError, match="instance norm in training mode changes its buffers"):
        trace(model.double(), torch.randn(3, 4).double())
    model.norm.eval()
    assert trace(model, torch.randn(3, 4).double()).trunk is not None
