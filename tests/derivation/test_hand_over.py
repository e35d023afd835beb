"""Where KFRA ends, by a node without average or by its blocks' size, columns go on with the layers below.

The oracle is each method alone: Ḡ of a layer is the same whatever method the other layers have.
"""

from __future__ import annotations

import re
import time
import warnings

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.app.api import understand
from gncompile.base.settings import Settings
from gncompile.derivation import method_choice
from gncompile.derivation.jacobians import Jacobian, Picked, Scaled, Weighted
from gncompile.derivation.method_choice import Choice, curvature_methods
from gncompile.errors import CompileError, MethodWarning
from gncompile.training.trainer import Trainer

FEATURES, OUTPUTS = 3, 2


class Branches(nn.Module):
    """Two branches that meet in a sum; between the layers of one is a concatenation with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(FEATURES, 4)
        self.above = nn.Linear(4 + FEATURES, 5)
        self.beside = nn.Linear(FEATURES, 5)
        self.out = nn.Linear(5, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([torch.tanh(self.below(x)), x], dim=1)
        return self.out(torch.tanh(torch.tanh(self.above(joined)) + self.beside(x)))


LAYERS = ("below", "beside", "above", "out")


@pytest.fixture
def no_average(monkeypatch: pytest.MonkeyPatch) -> None:
    """Selections of features are of a kind that brings ``push`` and ``pull`` only."""
    monkeypatch.delattr(Picked, "half")


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """KFLR's columns are never cheap enough."""
    monkeypatch.setattr(method_choice, "AFFORDABLE", -1.0)


def model() -> Branches:
    torch.manual_seed(0)
    return Branches().double()


def batch(outputs: int = OUTPUTS) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(9, FEATURES, generator=draw).double(), torch.rand(
        9, outputs, generator=draw
    ).double()


def choice(method: str | dict[str, str], net: nn.Module | None = None, **options: object) -> Choice:
    traced, loss, _ = understand(net or model(), "bce_with_logits", batch()[0])
    return curvature_methods(traced.graph, loss, Settings.from_options(method=method, **options))


def test_a_jacobian_says_whether_it_averages() -> None:
    averages = {kind: kind.averages.fget(kind.__new__(kind)) for kind in (Weighted, Picked, Scaled)}  # type: ignore[attr-defined]
    assert averages == {Weighted: True, Picked: True, Scaled: True}
    assert not Jacobian.averages.fget(Jacobian.__new__(Jacobian))  # type: ignore[attr-defined]


# --- nodes without average ----------------------------------------------------------------------------


@pytest.mark.usefixtures("no_average")
def test_only_the_layers_below_such_a_node_are_handed_over() -> None:
    methods = choice("kfra").methods
    assert methods == {"below": "kflr", "above": "kfra", "beside": "kfra", "out": "kfra"}


@pytest.mark.usefixtures("no_average", "draws")
def test_they_go_by_the_projection_where_columns_are_dear() -> None:
    assert choice("kfra").methods["below"] == "kfac_rp"


@pytest.mark.usefixtures("no_average")
def test_many_draws_and_columns_do_not_mix() -> None:
    assert choice("kfra", samples=2).methods["below"] == "kfac_rp"


@pytest.mark.usefixtures("no_average")
@pytest.mark.parametrize("method", ["kfra", {"*": "kfra"}, {"*": "kfra", "beside": "empirical"}])
def test_reasons_name_the_node_its_line_and_the_layers(method: str | dict[str, str]) -> None:
    chosen = choice(method)
    (reason,) = chosen.reasons
    assert "select[7 features](" in reason
    assert "joined = torch.cat(" in reason
    assert "test_hand_over.py:" in reason
    assert reason.endswith("kflr for below")
    if isinstance(method, dict) and len(method) > 1:
        assert chosen.methods["beside"] == "empirical"


@pytest.mark.usefixtures("no_average", "draws")
def test_auto_goes_on_with_columns() -> None:
    chosen = choice("auto")
    assert chosen.methods["below"] == "kfac_rp"
    assert any("kfra ends at select[" in reason for reason in chosen.reasons)
    assert any(reason.startswith("kfra where it reaches: ") for reason in chosen.reasons)


def pure(method: str, layer: str) -> Tensor:
    """Ḡ of a layer by one method for all, while every node averages."""
    x, y = batch()
    return gncompile.curvature(model(), "bce_with_logits", x, y, method)[layer].output


@pytest.mark.parametrize("inverse", ["cholesky", "eigen"])
def test_factors_are_those_of_each_method_alone(
    monkeypatch: pytest.MonkeyPatch, inverse: str
) -> None:
    x, y = batch()
    expected = {layer: pure("kfra", layer) for layer in LAYERS}
    expected["below"] = pure("kflr", "below")
    assert not torch.allclose(expected["below"], pure("kfra", "below"), rtol=1e-3)
    monkeypatch.delattr(Picked, "half")
    with pytest.warns(MethodWarning):
        trainer = gncompile.compile(
            model(),
            "bce_with_logits",
            x,
            {"*": "kfra"},
            factor_share=1.0,
            trace_correction=False,
            inverse=inverse,
        )
    trainer.step(x, y)  # the first running averages are this batch's
    for layer, factors in trainer.factors().items():
        # The same float64 sums in another order: a few roundings of numbers near one.
        torch.testing.assert_close(factors.output, expected[layer], rtol=1e-12, atol=1e-14)


def test_a_trainer_trains_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Picked, "half")
    monkeypatch.setattr(method_choice, "AFFORDABLE", -1.0)
    x, y = batch()
    losses = []
    for backend in ("torch", "reference"):
        with pytest.warns(MethodWarning):
            trainer = gncompile.compile(
                model(), "bce_with_logits", x, {"*": "kfra"}, backend=backend
            )
        losses.append([trainer.step(x, y).loss for _ in range(6)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)
    assert losses[0][-1] < losses[0][0]


@pytest.mark.usefixtures("no_average")
def test_a_layer_given_kfra_by_name_is_refused() -> None:
    with pytest.raises(CompileError) as caught:
        choice({"*": "kfac", "below": "kfra"})
    text = str(caught.value)
    assert "'kfra' of below needs an average of select[7 features](" in text
    assert "nodes of kind Select have none" in text
    assert "joined = torch.cat(" in text
    assert "use 'kfac_rp' or 'kflr'" in text


@pytest.mark.usefixtures("no_average")
def test_curvature_by_kfra_alone_is_refused() -> None:
    x, y = batch()
    with pytest.raises(CompileError, match="'kfra' of below needs an average of select"):
        gncompile.curvature(model(), "bce_with_logits", x, y, "kfra")


class Shared(nn.Module):
    """A layer used below and above a concatenation, and a trainable vector on either side of it."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.out = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, OUTPUTS)
        self.low, self.high = (nn.Parameter(torch.rand(FEATURES) + 0.5) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.twice(x)) * self.low
        h = torch.tanh(torch.cat([h[:, 1:], x[:, :1]], dim=1))
        return self.out(torch.tanh(self.twice(h)) * self.high)


def shared() -> Shared:
    torch.manual_seed(2)
    return Shared().double()


def test_one_use_below_hands_over_the_whole_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = batch()
    alone = {m: gncompile.curvature(shared(), "mse", x, y, m) for m in ("kfra", "kflr")}
    monkeypatch.delattr(Picked, "half")
    methods = {"twice": "kflr", "low": "kflr", "high": "kfra", "out": "kfra"}
    assert choice("kfra", shared()).methods == methods
    with pytest.warns(MethodWarning):
        trainer = gncompile.compile(
            shared(), "mse", x, {"*": "kfra"}, factor_share=1.0, trace_correction=False
        )
    trainer.step(x, y)
    for layer, factors in trainer.factors().items():
        expected = alone[methods[layer]][layer]
        torch.testing.assert_close(factors.output, expected.output, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(factors.input, expected.input, rtol=1e-12, atol=1e-14)


# --- what is said -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_average")
def test_the_user_is_told_once_at_his_line() -> None:
    with pytest.warns(MethodWarning, match="kfra ends at select") as caught:
        trainer = gncompile.compile(model(), "bce_with_logits", batch()[0], {"*": "kfra"})
    (found,) = [w for w in caught if w.category is MethodWarning]
    assert found.filename == __file__
    text = trainer.summary()
    assert "because kfra ends at select" in text
    assert re.search(r"^below .* kflr exact ", text, re.M)
    assert re.search(r"^above .* kfra averaged ", text, re.M)


@pytest.mark.usefixtures("no_average")
@pytest.mark.parametrize("method", ["auto", "kfra"])
def test_a_method_for_all_layers_hands_over_silently(method: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", MethodWarning)
        trainer = gncompile.compile(model(), "bce_with_logits", batch()[0], method)
    assert "kflr" in trainer.summary()


# --- memory -------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """Small layers around ``width`` features: only KFRA's block there is large."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(FEATURES, 5), nn.Linear(5, OUTPUTS)
        self.copies = width // 5

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.tanh(self.first(x).repeat(1, self.copies))
        return self.last(wide[:, :5] * wide[:, -5:])


def test_blocks_beyond_the_budget_are_never_made() -> None:
    """A block of 50,000 × 50,000 numbers takes 9.3 GiB: its layer goes by columns, and nothing is slow."""
    start = time.perf_counter()
    chosen = choice("kfra", Wide(50_000))
    assert time.perf_counter() - start < 20
    assert chosen.methods == {"first": "kflr", "last": "kfra"}
    (reason,) = chosen.reasons
    assert reason.startswith("kfra would need ")
    assert "memory_budget is 1.0 GiB: kflr for first" in reason


def test_the_budget_decides() -> None:
    net = Wide(200)
    fits = choice("kfra", net)
    assert set(fits.methods.values()) == {"kfra"}
    assert fits.reasons == ()
    small = choice(
        "kfra", net, memory_budget=200 * 200 * 4
    )  # the block alone, without its products
    assert small.methods == {"first": "kflr", "last": "kfra"}


def test_a_named_layer_beyond_the_budget_is_refused() -> None:
    with pytest.raises(
        CompileError, match=r"kfra would need .* memory_budget is 156\.2 KiB"
    ) as caught:
        choice({"*": "kfra", "first": "kfra"}, Wide(200), memory_budget=200 * 200 * 4)
    assert "self.first(x)" in str(caught.value)
    assert "or give more memory_budget" in str(caught.value)


def test_handed_over_layers_train_within_the_budget() -> None:
    """The work buffers that are really allocated have no block of the wide features."""
    x, y = batch()
    net = Wide(500).double()
    with pytest.warns(MethodWarning, match="kfra would need"):
        trainer: Trainer = gncompile.compile(net, "mse", x, {"*": "kfra"}, memory_budget=1 << 20)
    first = trainer.step(x, y).loss
    shapes = {i.spec.shape for i in trainer.program}
    assert (500, 500) not in shapes
    assert trainer.step(x, y).loss < first


class Pooled(nn.Module):
    """Convolutions on a grid that is large beside the network's other work, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(),
            nn.AvgPool2d(8), nn.Flatten(), nn.Linear(16, OUTPUTS),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_blocks_over_places_that_are_dear_are_handed_over_by_default() -> None:
    traced, loss, _ = understand(Pooled(), "bce_with_logits", torch.rand(2, 1, 16, 16))

    def methods(method: str | dict[str, str]) -> dict[str, str]:
        return curvature_methods(traced.graph, loss, Settings.from_options(method=method)).methods

    by_default = methods("kfra")
    assert by_default["body.0"] != "kfra"
    assert by_default["body.6"] == "kfra"
    assert set(methods({"*": "kfra"}).values()) == {"kfra"}  # asked for layer by layer, it is kept
