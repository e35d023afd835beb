"""Weights that come with a batch, and losses of several outputs, against plain torch under ``torch.func``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from loss_programs import LossProgram, check_against
from torch import Tensor, nn
from torch.nn import functional as F

import gncompile
from gncompile.data import Batches
from gncompile.errors import BatchError, LossError
from gncompile.graph.torch_network import objective
from gncompile.losses import resolve_loss, weighted
from gncompile.losses.examples import example_target
from gncompile.losses.rows import divisors
from gncompile.losses.weighting import bind_loss
from gncompile.training.stored_loss import loss_from_data, loss_to_data

generator = torch.Generator().manual_seed(0)
NAN = float("nan")


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=torch.float64)


def classes(k: int, *shape: int) -> Tensor:
    return torch.randint(k, shape, generator=generator)


# Weights of samples and elements ------------------------------------------------------------------

UNREDUCED: dict[str, tuple[Any, tuple[int, ...], Callable[[], Any], Callable[..., Tensor]]] = {
    "mse": (
        nn.MSELoss(reduction="none"), (5, 3), lambda: normal(5, 3),
        lambda z, y: F.mse_loss(z, y, reduction="none"),
    ),
    "huber of images": (
        nn.HuberLoss(), (4, 2, 3), lambda: normal(4, 2, 3),
        lambda z, y: F.huber_loss(z, y, reduction="none"),
    ),
    "binary": (
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 2.0, 3.0]).double()), (5, 3),
        lambda: uniform(5, 3).round(),
        lambda z, y: F.binary_cross_entropy_with_logits(
            z, y, reduction="none", pos_weight=torch.tensor([0.5, 2.0, 3.0]).double()
        ),
    ),
    "classes": (
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0]).double(), label_smoothing=0.1),
        (5, 3), lambda: classes(3, 5),
        lambda z, y: F.cross_entropy(
            z, y, torch.tensor([0.5, 1.0, 2.0]).double(), reduction="none", label_smoothing=0.1
        ),
    ),
    "places": (
        nn.CrossEntropyLoss(reduction="none"), (4, 3, 5), lambda: classes(3, 4, 5),
        lambda z, y: F.cross_entropy(z, y, reduction="none"),
    ),
    "ignored places": (
        nn.CrossEntropyLoss(ignore_index=1), (4, 3, 2), lambda: classes(3, 4, 2),
        lambda z, y: F.cross_entropy(z, y, ignore_index=1, reduction="none"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", UNREDUCED)
def test_weights_are_those_of_reduction_none(kind: str, normalize: bool) -> None:
    module, shape, target, unreduced = UNREDUCED[kind]
    loss = bind_loss(weighted(module, normalize=normalize), shape[1:])
    y, z = target(), normal(*shape)
    elements = unreduced(z, y).shape
    for dims in range(1, len(elements) + 1):
        w = uniform(*elements[:dims])
        w[1] = 0
        full = w.reshape(*w.shape, *[1] * (len(elements) - dims)).expand(elements)

        def value(z: Tensor, full: Tensor = full) -> Tensor:
            each = full * unreduced(z, y)
            return each.sum() / full.sum() if normalize else each.mean()

        check_against(loss, value, z, (y, w))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spec", ["huber", "(z1 - y1)**2 + (z1 - z2)**4", "cross_entropy"])
def test_named_losses_average_over_samples(spec: str, normalize: bool) -> None:
    loss = bind_loss(weighted(spec, normalize=normalize), (2,))
    y = {"cross_entropy": classes(2, 4), "huber": normal(4, 2)}.get(spec, normal(4, 1))
    each = {
        "huber": lambda z: F.huber_loss(z, y, reduction="none").sum(1),
        "cross_entropy": lambda z: F.cross_entropy(z, y, reduction="none"),
    }.get(spec, lambda z: (z[:, 0] - y[:, 0]) ** 2 + (z[:, 0] - z[:, 1]) ** 4)
    w = uniform(4)
    total = w.sum() if normalize else 4
    check_against(loss, lambda z: (w * each(z)).sum() / total, normal(4, 2), (y, w))


def test_a_summed_loss_has_no_weighted_mean() -> None:
    module = nn.MSELoss(reduction="sum")
    w, y = uniform(4), normal(4, 2)
    loss = weighted(module)
    check_against(loss, lambda z: (w[:, None] * (z - y) ** 2).sum(), normal(4, 2), (y, w))
    with pytest.raises(LossError, match=r"sum over samples, which does not divide by weights"):
        weighted(module, normalize=True)
    with pytest.raises(LossError, match=r"has weights already"):
        weighted(loss)


@pytest.mark.parametrize(
    ("spec", "y", "hidden"),
    [
        (nn.MSELoss(), [[1.0], [NAN], [0.5]], [[1.0], [7.0], [0.5]]),
        ("log(1 + exp(z1)) - y1*z1", [[1.0], [NAN], [0.5]], [[1.0], [7.0], [0.5]]),
        (nn.GaussianNLLLoss(), None, None),
        (nn.CrossEntropyLoss(), [1, 999, 0], [1, 0, 0]),
        (nn.CrossEntropyLoss(), [[0.5, 0.5], [NAN, NAN], [1, 0]], [[0.5, 0.5], [0, 1], [1, 0]]),
    ],
    ids=str,
)
def test_what_the_weight_0_hides_does_not_matter(spec: Any, y: Any, hidden: Any) -> None:
    w = torch.tensor([1.0, 0.0, 2.0]).double()
    if y is None:
        nan = torch.tensor([[1.0], [NAN], [0.5]]).double()
        pair = ((nan, nan, w), (nan.nan_to_num(3.0), nan.nan_to_num(3.0), w))
        outputs = 1
    else:
        given, other = torch.tensor(y), torch.tensor(hidden)
        given, other = ((t.double() if t.is_floating_point() else t) for t in (given, other))
        pair = ((given, w), (other, w))
        outputs = 2 if isinstance(spec, nn.CrossEntropyLoss) else 1
    z = normal(3, outputs)
    loss = bind_loss(weighted(spec, normalize=True), (outputs,))
    first, second = (LossProgram(loss, outputs, "torch").results(z, y) for y in pair)
    for role in ("loss", "gradient", "hessian", "root", "product"):
        assert bool(first[role].isfinite().all())
        assert torch.equal(first[role], second[role]), role
    assert not first["gradient"][1].any()


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ((normal(3, 2), torch.tensor([1.0, -1.0, 0.0])), r"got the weight -1"),
        ((normal(3, 2), torch.tensor([1.0, NAN, 0.0])), r"got the weight nan"),
        ((normal(3, 2), uniform(2)), r"its weights"),
        ((normal(3, 2), uniform(3, 1)), r"its weights"),
        (normal(3, 2), r"takes targets \(y, w\), got a Tensor"),
        ((normal(3, 2),), r"takes targets \(y, w\), got a tuple of 1"),
        ((normal(3, 2), 1.0), r"takes targets \(y, w\)|the target is float"),
    ],
)
def test_other_weights_are_refused(target: Any, text: str) -> None:
    model = nn.Linear(4, 2).double()
    x = normal(3, 4)
    trainer = gncompile.compile(model, weighted("mse"), x, "sgd")
    with pytest.raises(BatchError, match=text):
        trainer.step(x, target)
    with pytest.raises(BatchError, match=r"the target is a tuple of 2"):
        gncompile.compile(model, "mse", x, "sgd").step(x, (normal(3, 2), uniform(3)))


# Several outputs ----------------------------------------------------------------------------------


class Heads(nn.Module):
    """Four outputs of one trunk."""

    def __init__(self, named: bool = True) -> None:
        super().__init__()
        self.trunk, self.named = nn.Linear(4, 5), named
        self.heads = nn.ModuleDict(
            {"class": nn.Linear(5, 3), "box": nn.Linear(5, 2), "map": nn.Linear(5, 6)}
        )

    def forward(self, x: Tensor) -> Any:
        h = self.trunk(x).tanh()
        found = {key: head(h) for key, head in self.heads.items()}
        found["map"] = found["map"].unflatten(1, (3, 2))
        return found if self.named else tuple(found.values())


LOSSES: dict[str, Any] = {
    "map": nn.CrossEntropyLoss(),
    "class": (nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.0, 2.0]).double()), 0.7),
    "box": (weighted("huber", normalize=True), 2),
}
SHAPES = (("class", (3,)), ("box", (2,)), ("map", (3, 2)))


def sum_of(z: dict[str, Tensor], y: dict[str, Any]) -> Tensor:
    box, w = y["box"]
    weight = torch.tensor([0.5, 1.0, 2.0]).double()
    value = 0.7 * F.cross_entropy(z["class"], y["class"], weight)
    value = value + F.cross_entropy(z["map"], y["map"])
    each = F.huber_loss(z["box"], box, reduction="none").sum(1)
    return value + 2 * (w * each).sum() / w.sum()


def targets(n: int) -> dict[str, Any]:
    return {
        "class": classes(3, n),
        "box": (normal(n, 2), uniform(n)),
        "map": classes(3, n, 2).masked_fill(uniform(n, 2) < 0.3, -100),
    }


def split(z: Tensor) -> dict[str, Tensor]:
    parts = z.split([3, 2, 6], dim=1)
    return {key: p.reshape(-1, *s) for p, (key, s) in zip(parts, SHAPES, strict=True)}


def test_a_sum_of_losses_and_all_its_derivatives() -> None:
    loss = bind_loss(resolve_loss(LOSSES), (11,), SHAPES)
    y = targets(4)
    check_against(loss, lambda z: sum_of(split(z), y), normal(4, 11), y)


def test_a_sum_of_thin_and_coupled_blocks() -> None:
    specs = ["mse", "bce_with_logits", ("(z1 - y1)**2 + (z1 - z2)**2", 0.5)]
    shapes = (("0", (2,)), ("1", (1,)), ("2", (2,)))
    y = (normal(3, 2), uniform(3, 1), normal(3, 1))

    def value(z: Tensor) -> Tensor:
        a, b, c = z.split([2, 1, 2], dim=1)
        bce = F.binary_cross_entropy_with_logits(b, y[1], reduction="sum")
        coupled = (c[:, 0] - y[2][:, 0]) ** 2 + (c[:, 0] - c[:, 1]) ** 2
        return (((a - y[0]) ** 2).sum() / 2 + bce + 0.5 * coupled.sum()) / 3

    check_against(bind_loss(resolve_loss(specs), (5,), shapes), value, normal(3, 5), y)
    thin = bind_loss(resolve_loss(specs[:2]), (3,), shapes[:2])
    check_against(
        thin,
        lambda z: value(torch.cat([z, z.new_zeros(3, 2)], 1)) - (y[2] ** 2).sum() / 6,
        normal(3, 3),
        y[:2],
    )


def test_the_draws_of_terms_are_independent() -> None:
    """``E[g̃ g̃ᵀ] = 𝓗``, block-diagonal, although two terms draw numbers of the same kind and shape."""
    shapes = (("0", (2,)), ("1", (2,)), ("2", (2, 2)), ("3", (2, 2)))
    specs = ["mse", "mse", nn.CrossEntropyLoss(), nn.CrossEntropyLoss()]
    loss = bind_loss(resolve_loss(specs), (12,), shapes)
    draws = 8000
    y = (normal(1, 2), normal(1, 2), classes(2, 1, 2), classes(2, 1, 2))
    y = tuple(each.expand(draws, -1) for each in y)
    program, z = LossProgram(loss, 12, "torch"), normal(1, 12)
    hessian = program.results(z, [each[:1] for each in y])["hessian"][0]
    moments = program.second_moments(z.expand(draws, -1), y)
    assert moments.keys() == {"sampled", "projected"}
    for role, (mean, error) in moments.items():
        # Five standard errors of each of 144 entries; of signs the diagonal has none.
        assert ((mean - hessian).abs() <= 5 * error + 1e-9).all(), role


@pytest.mark.parametrize("named", [True, False])
def test_a_network_with_several_outputs_trains(named: bool) -> None:
    torch.manual_seed(0)
    model, n = Heads(named).double(), 30
    x, y = normal(n, 4), targets(n)
    specs: Any = LOSSES if named else [LOSSES[key] for key, _ in SHAPES]
    given: Any = y if named else tuple(y[key] for key, _ in SHAPES)
    trainer = gncompile.compile(model, specs, x)
    parameters = dict(model.named_parameters())
    z = model(x)
    value = sum_of(z if named else dict(zip(("class", "box", "map"), z, strict=True)), y)
    expected = torch.autograd.grad(value, parameters.values())
    found = trainer.gradients(x, given)
    for name, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(found[name], wanted, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(trainer.loss(x, given), value.detach())
    predicted = trainer.predict(x)
    torch.testing.assert_close(predicted, z, check_stride=False) if named else None
    assert type(predicted) is (dict if named else tuple)
    for size in (7, n):  # by parts, what a weighted mean divides by is that of the whole
        assert trainer.evaluate(x, given, batch_size=size) == pytest.approx(float(value), rel=1e-12)
    history = trainer.fit(Batches(x, given, 10), epochs=3, progress=False)
    assert history.loss[-1] < float(value)
    assert "class: CrossEntropyLoss" not in trainer.summary()
    assert "huber of box" in trainer.summary() or not named
    assert "E_n,i" in trainer.explain()


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        ({"class": "cross_entropy"}, r"losses are for the outputs class, .* class, box, map"),
        (["mse", "mse", "mse"], r"for the outputs 0, 1, 2, the network returns class, box, map"),
        ("mse", r"the network returns 3 outputs, the loss 'mse' is for one"),
        ({**LOSSES, "box": ("mse", "half")}, r"the weight of the loss 'mse' is 'half'"),
        ({**LOSSES, "box": ("mse", 0.0)}, r"scale must be positive and finite, got 0"),
        ({**LOSSES, "box": ("mse", 1.0, 2)}, r"is a tuple of 3"),
        ({**LOSSES, "box": ["mse"]}, r"is a sum of losses itself"),
        ({}, r"no losses are given"),
    ],
)
def test_losses_that_do_not_fit_the_outputs(specs: Any, text: str) -> None:
    with pytest.raises(LossError, match=text):
        gncompile.compile(Heads().double(), specs, normal(3, 4))
    with pytest.raises(LossError, match=r"the network returns one tensor"):
        gncompile.compile(nn.Linear(4, 2), {"a": "mse"}, torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda y: {k: y[k] for k in ("class", "box")}, r"the keys class, box, map, got a dict of 2"),
        (lambda y: tuple(y.values()), r"got a tuple of 3"),
        (lambda y: {**y, "map": y["class"]}, r"in the target of the output 'map'"),
    ],
)  # fmt: skip
def test_targets_that_do_not_fit_the_losses(change: Callable[[Any], Any], text: str) -> None:
    trainer = gncompile.compile(Heads().double(), LOSSES, normal(3, 4), "sgd")
    with pytest.raises(BatchError, match=text):
        trainer.step(normal(3, 4), change(targets(3)))


# Every form of a loss, once more ------------------------------------------------------------------

EVERY: list[tuple[Any, tuple[int, ...], Any]] = [
    (LOSSES, (11,), SHAPES),
    (nn.GaussianNLLLoss(full=True), (3,), ()),
    (weighted(nn.CrossEntropyLoss(ignore_index=0), normalize=True), (3, 2), ()),
    (weighted("(z1 - y1)**2 + (z2 - y1)**2"), (2,), ()),
    (nn.BCEWithLogitsLoss(torch.rand(3), pos_weight=torch.rand(3)), (2, 3), ()),
    (nn.CrossEntropyLoss(torch.rand(3), label_smoothing=0.3), (3, 2, 2), ()),
    (nn.MultiLabelSoftMarginLoss(reduction="sum"), (4,), ()),
]


@pytest.mark.parametrize(("spec", "shape", "outputs"), EVERY, ids=lambda each: str(each)[:30])
def test_stored_bound_again_and_as_plain_torch(spec: Any, shape: Any, outputs: Any) -> None:
    loss = bind_loss(resolve_loss(spec), shape, outputs)
    assert loss_from_data(json.loads(json.dumps(loss_to_data(loss)))) == loss
    assert bind_loss(loss, shape, outputs) == loss
    assert loss.convexity.verdict != "not convex"
    y = example_target(loss, 3, shape, generator, torch.float64)
    size = math.prod(shape)
    value = objective(loss, None)
    check_against(loss, lambda z: value(z.reshape(3, -1), y), normal(3, *shape), y)
    assert len(divisors(loss, size)) == {0: 3, 2: 1, 5: 1}.get(
        [each[0] for each in EVERY].index(spec), 0
    )


def test_curvature_by_parts_is_that_of_the_whole() -> None:
    """Chunks of a memory budget divide by what the whole batch divides by."""
    model, x, y = Heads().double(), normal(12, 4), targets(12)
    whole = gncompile.curvature(model, LOSSES, x, y, "kflr")
    parts = gncompile.curvature(model, LOSSES, x, y, "kflr", memory_budget=4000)
    for layer, factors in whole.items():
        torch.testing.assert_close(parts[layer].output, factors.output, rtol=1e-12, atol=1e-14)


def test_verification_knows_them() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 6), nn.Unflatten(1, (3, 2)))
    report = gncompile.verify(model, nn.CrossEntropyLoss(torch.rand(3)), torch.zeros(2, 3))
    assert report.ok, report
    report = gncompile.verify(Heads(), LOSSES, torch.zeros(2, 4))
    assert report.ok, report
