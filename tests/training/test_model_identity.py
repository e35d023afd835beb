"""The model changed behind its trainer: other tensors are followed, another function is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator

import oracles
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from training import WIDTH, assert_same_state, compiled, network, samples, snapshot

import gncompile
from gncompile.errors import GncompileError, ModelChangedError
from gncompile.training.trainer import Trainer

Change = Callable[[nn.Module], object]


def set_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.data = p.data * 1.5


def vector(model: nn.Module) -> None:
    count = sum(p.numel() for p in model.parameters())
    values = torch.linspace(-1, 1, count, dtype=torch.float64)
    nn.utils.vector_to_parameters(values, model.parameters())


def assign(model: nn.Module) -> None:
    model.load_state_dict({k: v * 0.5 for k, v in model.state_dict().items()}, assign=True)


def new_parameter(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(model[0].weight.detach() * 2)  # type: ignore[index]


def new_layer(model: nn.Module) -> None:
    model[4] = nn.Linear(4, 3).double()  # type: ignore[operator]


FOLLOWED: dict[str, Change] = {
    "param.data": set_data,
    "vector_to_parameters": vector,
    "load_state_dict(assign=True)": assign,
    "float().double()": lambda m: m.float().double(),
    "a new Parameter": new_parameter,
    "a new layer of the same sizes": new_layer,
    "the same activation anew": lambda m: m.__setitem__(1, nn.Tanh()),
    "in place": lambda m: [p.data.mul_(1.5) for p in m.parameters()],
}


@pytest.mark.parametrize(
    ("change", "method"),
    [(change, "kfra") for change in FOLLOWED]
    + [
        (c, m) for c in ("param.data", "a new layer of the same sizes") for m in ("adam", "guarded")
    ],
)
def test_other_tensors_are_followed(change: str, method: str) -> None:
    model = network()
    trainer = compiled(model, guarded=True) if method == "guarded" else compiled(model, method)
    x, y = samples(40)
    for _ in range(3):
        trainer.step(x, y)
    FOLLOWED[change](model)
    assert float(trainer.loss(x, y)) == pytest.approx(loss(model, x, y), rel=1e-12)
    assert torch.allclose(trainer.predict(x), model(x), rtol=1e-12)
    held = [p.clone() for p in model.parameters()]
    before = loss(model, x, y)
    assert trainer.step(x, y).loss == pytest.approx(before, rel=1e-12)
    assert not any(map(torch.equal, held, model.parameters()))
    for _ in range(8):
        trainer.step(x, y)
    assert loss(model, x, y) < before
    assert trainer.evaluate(x, y, averaged=False) == pytest.approx(loss(model, x, y), rel=1e-12)


def loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    return float(oracles.mean_loss(model, "bce_with_logits", x, y))


def share_memory(model: nn.Module) -> None:
    model[4].bias.data = model[0].bias.data[:3]  # type: ignore[index, union-attr]


REFUSED: dict[str, tuple[Change, str]] = {
    "double to float": (lambda m: m.float(), "'0.weight' has the dtype torch.float32 instead of"),
    "to another device": (lambda m: m.to("meta"), "'0.weight' has the device meta instead of cpu"),
    "frozen": (lambda m: m[0].weight.requires_grad_(False), "'0.weight' was frozen after"),
    "another activation": (lambda m: m.__setitem__(1, nn.ReLU()), "computes another function"),
    "another width": (lambda m: m.__setitem__(0, nn.Linear(WIDTH, 5, False).double()), "'0.bias'"),
    "one more layer": (lambda m: m.append(nn.Linear(3, 3).double()), "computes another function"),
    "pruned": (lambda m: prune.l1_unstructured(m[0], "weight", 2), "no parameter '0.weight'"),
    "normed": (lambda m: parametrizations.weight_norm(m[0]), "no parameter '0.weight'"),
    "shared memory": (share_memory, "0.bias, 4.bias share their memory"),
    "tied": (
        lambda m: setattr(m[4], "bias", nn.Parameter(torch.zeros(4).double())),
        "has the shape",
    ),
    "dropout": (lambda m: m.__setitem__(1, nn.Dropout(0.5)), "computes another function"),
    "a new forward hook": (
        lambda m: m[1].register_forward_hook(lambda *a: 2 * a[2]),
        "another function",
    ),
    "a new pre-hook": (
        lambda m: m[0].register_forward_pre_hook(lambda k, x: (x[0] + 1,)),
        "another func",
    ),
    "a new forward": (
        lambda m: setattr(m[1], "forward", torch.sigmoid),
        "computes another function",
    ),
    "a gradient hook": (lambda m: m[0].weight.register_hook(lambda g: 2 * g), "a gradient hook"),
    "an accumulate hook": (
        lambda m: m[0].weight.register_post_accumulate_grad_hook(print),
        "a register_post_accumulate_grad_hook",
    ),
    "a backward hook": (
        lambda m: m[1].register_full_backward_hook(lambda *a: None),
        r"a backward hook \(register_full_backward_hook\)",
    ),
    "a backward pre-hook": (
        lambda m: m.register_full_backward_pre_hook(lambda *a: None),
        "the module itself, Sequential",
    ),
}


@pytest.mark.parametrize("change", REFUSED)
def test_another_function_is_refused(change: str) -> None:
    model = network()
    trainer = compiled(model)
    x, y = samples(40)
    trainer.step(x, y)
    act, found = REFUSED[change]
    act(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for use in (
        lambda: trainer.step(x, y),
        lambda: trainer.predict(x),
        lambda: trainer.evaluate(x, y),
        lambda: trainer.loss(x, y),
        lambda: trainer.gradients(x, y),
        trainer.state_dict,
    ):
        with pytest.raises(ModelChangedError, match=found):
            use()
    if change != "to another device":
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert trainer.updates == 1


def test_unfreezing_is_refused_and_taken_back() -> None:
    model = network()
    model[0].requires_grad_(False)  # type: ignore[index]
    trainer, (x, y) = compiled(model), samples(40)
    trainer.step(x, y)
    model[0].requires_grad_(True)  # type: ignore[index]
    with pytest.raises(ModelChangedError, match=r"the parameter '0\.weight' was unfrozen"):
        trainer.step(x, y)
    model[0].requires_grad_(False)  # type: ignore[index]
    assert trainer.step(x, y).update == 2


class Scaled(nn.Module):
    """Constants of several kinds: a buffer, frozen batch norm, a plain tensor, a frozen weight, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(WIDTH, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 5))
        self.norm = nn.BatchNorm1d(5).requires_grad_(False)
        self.norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
        self.shift = torch.full((5,), 0.3, dtype=torch.float64)
        self.b.requires_grad_(False)
        self.power = 1.0
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        h = self.norm(torch.tanh(self.a(x)) * self.scale + self.shift)
        return self.c(torch.tanh(self.b(h)) * self.power)


CONSTANTS: dict[str, Change] = {
    "a buffer in place": lambda m: m.scale.mul_(2),
    "a buffer replaced": lambda m: setattr(m, "scale", m.scale * 3),
    "running statistics": lambda m: m.norm.running_mean.add_(0.5),
    "running statistics loaded": lambda m: m.load_state_dict(
        {k: v * 2 if "running" in k else v for k, v in m.state_dict().items()}
    ),
    "a frozen scale": lambda m: m.norm.weight.fill_(2.0),
    "a plain tensor in place": lambda m: m.shift.zero_(),
    "a plain tensor replaced": lambda m: setattr(m, "shift", m.shift + 1),
    "a frozen weight in place": lambda m: m.b.weight.mul_(2),
    "a frozen weight replaced": lambda m: setattr(
        m.b, "weight", nn.Parameter(m.b.weight * 2, requires_grad=False)
    ),
}


@pytest.mark.parametrize("change", CONSTANTS)
def test_constants_are_followed(change: str) -> None:
    torch.manual_seed(0)
    model = Scaled().double().eval()
    trainer, (x, y) = compiled(model), samples(40)
    trainer.step(x, y)
    before = loss(model, x, y)
    with torch.no_grad():
        CONSTANTS[change](model)
    expected = loss(model, x, y)
    assert abs(expected - before) > 1e-6
    assert float(trainer.loss(x, y)) == pytest.approx(expected, rel=1e-12)
    assert trainer.step(x, y).loss == pytest.approx(expected, rel=1e-12)
    assert trainer.evaluate(x, y) == pytest.approx(loss(model, x, y), rel=1e-12)


def test_a_number_in_forward_is_not_followed_but_refused() -> None:
    model = Scaled().double().eval()
    trainer, (x, y) = compiled(model), samples(40)
    model.power = 2.0
    with pytest.raises(ModelChangedError, match="the model computes another function"):
        trainer.step(x, y)


def test_train_mode_where_it_matters_and_where_it_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = Scaled().double().eval(), samples(40)
    trainer = compiled(model)
    model.train()
    with pytest.raises(ModelChangedError, match=r"(?s)cannot be compiled any more.*batch"):
        trainer.step(x, y)
    plain = network()
    trainer = compiled(plain)
    traced, again = [], trainer.compiled.identity._again
    monkeypatch.setattr(trainer.compiled.identity, "_again", lambda: traced.append(1) or again())  # type: ignore
    for _ in range(4):
        plain.eval()
        trainer.evaluate(x, y)
        plain.train()
        trainer.step(x, y)
    assert len(traced) == 1  # remembered from then on


def test_a_counter_of_the_models_own_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = Scaled().double().eval(), samples(40)
    trainer = compiled(model)
    traced, again = [], trainer.compiled.identity._again
    monkeypatch.setattr(trainer.compiled.identity, "_again", lambda: traced.append(1) or again())  # type: ignore
    for _ in range(9):
        model(x)
        trainer.step(x, y)
    assert 0 < len(traced) < 5


class Warmed(nn.Module):
    """A counter that matters late, and a number of the class."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.epoch = nn.Linear(WIDTH, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.factor * (2.0 if self.epoch > 5 else 1.0)


def test_a_counter_that_was_harmless_and_is_no_more_is_refused() -> None:
    model, (x, y) = Warmed().double(), samples(40)
    trainer = compiled(model)
    for model.epoch in range(6):
        assert float(trainer.loss(x, y)) == pytest.approx(loss(model, x, y), rel=1e-12)
    model.epoch = 6
    for _ in range(2):
        with pytest.raises(ModelChangedError, match="the model computes another function"):
            trainer.loss(x, y)
    model.epoch = 1
    assert float(trainer.loss(x, y)) == pytest.approx(loss(model, x, y), rel=1e-12)


def test_an_attribute_new_since_then_is_looked_at() -> None:
    model, (x, y) = Warmed().double(), samples(40)
    trainer = compiled(model)
    model.remark = "of no consequence"
    trainer.step(x, y)
    model.factor = 3.0  # in place of the class's
    with pytest.raises(ModelChangedError, match="the model computes another function"):
        trainer.step(x, y)


def test_forward_hooks_there_when_compiled_are_traced() -> None:
    model = network()
    model[1].register_forward_hook(lambda module, x, output: 2 * output)  # type: ignore[index]
    model[2].register_forward_pre_hook(lambda module, x: (x[0] + 0.1,))  # type: ignore[index]
    x, y = samples(20)
    trainer = compiled(model)
    assert float(trainer.loss(x, y)) == pytest.approx(loss(model, x, y), rel=1e-12)
    expected = torch.autograd.grad(
        oracles.mean_loss(model, "bce_with_logits", x, y), list(model.parameters())
    )
    for got, wanted in zip(trainer.gradients(x, y).values(), expected, strict=True):
        assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-14)


# --- Hooks that would never be called, at compile -------------------------------------------------------


def with_hook(change: str) -> nn.Module:
    model = network()
    REFUSED[change][0](model)
    return model


@pytest.mark.parametrize(
    "change", [name for name in REFUSED if "hook" in name and "new" not in name]
)
def test_gradient_hooks_are_refused_at_compile(change: str) -> None:
    x, y = samples(8)
    with pytest.raises(ModelChangedError, match="would never be called"):
        compiled(with_hook(change))
    with pytest.raises(ModelChangedError, match="would never be called"):
        gncompile.curvature(with_hook(change), "mse", x, y)


@pytest.fixture
def everywhere() -> Iterator[None]:
    handle = nn.modules.module.register_module_full_backward_hook(lambda *a: None)
    yield
    handle.remove()


def test_a_hook_of_all_modules_is_refused(everywhere: None) -> None:
    with pytest.raises(ModelChangedError, match="register_module_full_backward_hook"):
        compiled(network())


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_the_loss_are_refused(register: str) -> None:
    module, (x, y) = nn.MSELoss(), samples(8)
    trainer = gncompile.compile(network(), module, x)
    trainer.step(x, y)
    getattr(module, register)(lambda *a: None)
    with pytest.raises(ModelChangedError, match="a forward hook of the loss"):
        trainer.step(x, y)
    with pytest.raises(ModelChangedError, match="a forward hook of the loss"):
        gncompile.compile(network(), module, x)


def test_another_loss_is_refused() -> None:
    module, (x, y) = nn.HuberLoss(), samples(8)
    trainer = gncompile.compile(network(), module, x)
    module.delta = 0.1
    with pytest.raises(ModelChangedError, match="the loss module was changed"):
        trainer.step(x, y)


def test_a_hook_of_a_frozen_parameter_does_no_harm() -> None:
    model = network()
    model[0].weight.register_hook(lambda g: 2 * g)  # type: ignore[index, union-attr]
    model[0].requires_grad_(False)  # type: ignore[index]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    compiled(model).step(*samples(40))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("0."), name


# --- Copies ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "steps"),
    [("kfra", 0), ("kfra", 12), ("kfac", 1), ("adam", 0), ("adam", 3), ("sgd", 3), ("guarded", 3)],
)
def test_a_deep_copy_is_independent_and_goes_on_to_the_bit(method: str, steps: int) -> None:
    model = network()
    trainer = compiled(model, guarded=True) if method == "guarded" else compiled(model, method)
    for step in range(steps):
        trainer.step(*samples(40, seed=step))
    other = copy.deepcopy(trainer)
    assert other.model is not model
    before = snapshot(trainer)
    assert_same_state(snapshot(other), before)
    for step in range(12):
        assert other.step(*samples(40, seed=50 + step)).loss >= 0
    assert_same_state(snapshot(trainer), before)
    for step in range(12):
        trainer.step(*samples(40, seed=50 + step))
    assert_same_state(snapshot(other), snapshot(trainer))
    assert_tensors_equal(other.model, trainer.model)


def assert_tensors_equal(a: nn.Module, b: nn.Module) -> None:
    for (name, mine), (_, its) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(mine, its), name
        assert mine.data_ptr() != its.data_ptr()


class Holder(nn.Module):
    """A module that keeps the trainer of a part of itself, as training frameworks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.trainer = compiled(self.net)


def test_a_copied_module_holds_the_trainer_of_its_own_part() -> None:
    holder = Holder()
    holder.trainer.step(*samples(40))
    other = copy.deepcopy(holder)
    assert other.trainer.model is other.net
    before = [p.clone() for p in holder.net.parameters()]
    other.trainer.step(*samples(40))
    assert all(map(torch.equal, before, holder.net.parameters()))
    assert not any(map(torch.equal, other.net.parameters(), holder.net.parameters()))


def test_a_model_that_holds_its_own_trainer() -> None:
    model = network()
    model.trainer = compiled(model)
    model.trainer.step(*samples(40))  # type: ignore[operator, union-attr]
    with pytest.raises(
        GncompileError, match="the model that is being copied holds its own trainer"
    ):
        copy.deepcopy(model)
    other = copy.deepcopy(model.trainer)
    assert isinstance(other, Trainer)
    assert other.model.trainer is other
    other.step(*samples(40))
    assert other.updates == 2
    assert model.trainer.updates == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("act", [pickle.dumps, copy.copy])
def test_other_copies_are_refused(act: Callable[[object], object]) -> None:
    with pytest.raises(
        GncompileError, match=r"trainer\.save\(path\).*Trainer\.resume\(path, model\)"
    ):
        act(compiled(network()))
