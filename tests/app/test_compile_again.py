"""An identical program is derived, written and loaded once; anything that differs is a program of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gncompile
from gncompile import pipeline
from gncompile.app.api import understand
from gncompile.base.exact_key import Recent
from gncompile.base.settings import Settings
from gncompile.derivation import forward
from gncompile.derivation.forward import node_rule
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import ModelGraph
from gncompile.graph.nodes import Input, Node, Output
from gncompile.losses import Loss, resolve_loss
from gncompile.program.step_program import StepProgram
from gncompile.solvers.kronecker import Kronecker
from gncompile.training.trainer import Trainer

X, Y = torch.linspace(-1, 1, 24).reshape(8, 3), torch.linspace(0, 1, 16).reshape(8, 2)


def network(width: int = 4, transfer: type[nn.Module] = nn.Tanh, last: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), transfer(), nn.Linear(width, 2, bias=last))


class Changed(nn.Module):
    """``W₂ f(W₁ x)``, where only ``f`` tells one from another."""

    def __init__(self, f: Callable[[Tensor], Tensor], frozen: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.f: Callable[[Tensor], Tensor] = f
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name != frozen)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.f(self.first(x)))


def own(expression: str) -> nn.Module:
    """A network of a function that was registered by the same name before, with another formula."""
    transfer = gncompile.register_transfer("test_again", expression, override=True)
    return Changed(transfer.module())


def own_loss(expression: str, **options: Any) -> str | Loss:
    return gncompile.register_loss("test_again", expression, override=True, **options)


def compiled(model: nn.Module | None = None, loss: object = "mse", **options: object) -> Trainer:
    return gncompile.compile(model or network(), loss, X, **options)  # type: ignore[arg-type]


def losses(trainer: Trainer) -> list[float]:
    return [float(trainer.step(X, Y).loss) for _ in range(4)]


def test_the_second_compile_shares_everything_but_memory() -> None:
    first, second = compiled(seed=1), compiled(seed=1)
    one, two = first._executable, second._executable
    assert one.program is two.program
    assert one.source is two.source
    assert one._bind_emitted is two._bind_emitted
    assert one.source_file == two.source_file
    alone = losses(first)
    assert losses(second) == alone  # from the start, whatever the first has done in its own memory
    assert losses(first) != alone


def told(program: StepProgram) -> StepProgram:
    """All of it but when its phases are due, which functions say."""
    return replace(program, step=())


SIMILAR: list[tuple[nn.Module, Any, dict[str, Any]]] = [
    (network(), "mse", {}),
    (network(5), "mse", {}),
    (network(transfer=nn.Sigmoid), "mse", {}),
    (network(last=False), "mse", {}),
    (network(), "huber", {}),
    (network(), nn.HuberLoss(delta=2.0), {}),
    (network(), nn.HuberLoss(delta=2.5), {}),
    (network(), "(z - y)**2", {}),
    (network(), "(z - y)**2.0", {}),
    (network(), gncompile.losses.weighted("mse"), {}),
    (network(), "mse", {"method": "kflr"}),
    (network(), "mse", {"method": {"*": "kfra", "2": "kfac"}}),
    (network(), "mse", {"method": {"2": "kfac", "*": "kfra"}}),
    (network(), "mse", {"l2": 1.0}),
    (network(), "mse", {"l2": 1.5}),
    (network(), "mse", {"damping": 0.2}),
    (own("tanh(x) + x/8"), "mse", {}),
    (own("tanh(x) + x/4"), "mse", {}),
    (network(), own_loss("exp(z) - y*z", targets=(0, 1)), {}),
    (network(), own_loss("exp(z) - y*z", targets=(0, 2)), {}),
    (Changed(lambda h: 0.5 * h.tanh()), "mse", {}),
    (Changed(lambda h: 0.25 * h.tanh()), "mse", {}),
    (Changed(lambda h: h.tanh()[:, [0, 2, 1, 3]]), "mse", {}),
    (Changed(lambda h: h.tanh()[:, [0, 1, 3, 2]]), "mse", {}),
    (Changed(lambda h: functional.pad(h[:, 1:].tanh(), (1, 0), value=1.0)), "mse", {}),
    (Changed(lambda h: functional.pad(h[:, 1:].tanh(), (1, 0), value=2.0)), "mse", {}),
    (Changed(torch.tanh, frozen="first.bias"), "mse", {}),
    (Changed(torch.tanh, frozen="second.bias"), "mse", {}),
    (Changed(nn.Dropout(0.5)), "mse", {}),
    (Changed(nn.Dropout(0.25)), "mse", {}),
    (Changed(nn.Dropout(0.25)).eval(), "mse", {}),
    (Changed(nn.LayerNorm(4, eps=1e-5, elementwise_affine=False)), "mse", {}),
    (Changed(nn.LayerNorm(4, eps=1e-3, elementwise_affine=False)), "mse", {}),
    (network(), nn.CrossEntropyLoss(label_smoothing=0.125), {}),
    (network(), nn.CrossEntropyLoss(label_smoothing=0.25), {}),
    (network(), nn.CrossEntropyLoss(ignore_index=0), {}),
    (network(), nn.CrossEntropyLoss(ignore_index=1), {}),
]


def test_similar_ones_are_not_taken_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is what deriving gives that knows of no other."""
    monkeypatch.setattr(pipeline, "_programs", Recent(kept=100))
    asked: list[tuple[Any, ...]] = []
    for model, loss, options in SIMILAR:
        traced, declared, _reader = understand(model, loss, X)
        asked.append((traced.graph, declared, Settings.from_options(**options), Kronecker))
    alone = [told(pipeline._derived(*each)) for each in asked]
    for _ in range(2):
        programs = [pipeline.step_program(*each) for each in asked]
        assert list(map(told, programs)) == alone
    assert len({id(program) for program in programs}) == len(SIMILAR)


def test_constants_are_of_each_model_though_the_program_is_one() -> None:
    """Trained in turn, each does what it does alone."""

    def trainer(number: float) -> Trainer:
        model = Changed(torch.tanh)
        model.register_buffer("scale", torch.tensor([1.0, number, 2.0, 1.0]))
        model.f = lambda h: h.tanh() * model.get_buffer("scale")
        return compiled(model)

    alone = [losses(trainer(number)) for number in (1.5, 3.0)]
    first, second = trainer(1.5), trainer(3.0)
    assert first._executable.program is second._executable.program
    found: tuple[list[float], list[float]] = [], []
    for _ in range(4):
        found[0].append(first.step(X, Y).loss)
        found[1].append(second.step(X, Y).loss)
    assert list(found) == alone
    assert alone[0] != alone[1]


@dataclass(frozen=True, eq=False)
class Noted(Output):
    """An output that may hold what nothing compares."""

    note: object = ""


node_rule(Noted)(forward._RULES[Output])


@pytest.mark.parametrize(("note", "kept"), [("text", True), (torch.zeros(3), False)])
def test_a_graph_that_holds_a_tensor_is_derived_each_time(note: object, kept: bool) -> None:
    nodes = [
        Node("x", Input(0), (), (3,)),
        Node("z", Affine("one", "W", "b"), ("x",), (3,)),
        Node("output", Noted(note=note), ("z",), (3,)),
    ]
    asked = ModelGraph(nodes), resolve_loss("mse"), Settings()
    first, second = (pipeline.step_program(*asked) for _ in range(2))
    assert told(first) == told(second)
    assert (first is second) == kept
