"""Every loss × every option × both dtypes against autograd in float64, corners included.

The lists of losses and of options are the registry's and the torch modules' own, so that a new one is swept
or a test here fails.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.derivation.loss_rules import loss_rules
from gncompile.errors import LossError
from gncompile.graph.model_graph import ModelGraph, TracedModel
from gncompile.graph.nodes import Input, Node, Output
from gncompile.losses import Loss, losses_torch, resolve_loss
from gncompile.losses import vocabulary as losses
from gncompile.program.builder import ProgramBuilder
from gncompile.program.phases import Phase, Repeat
from gncompile.runtime.executable import Executable

DTYPES = (torch.float32, torch.float64)
INF, NAN = float("inf"), float("nan")

OPTIONS: dict[type, dict[str, tuple[Any, ...]]] = {
    nn.MSELoss: {},
    nn.BCEWithLogitsLoss: {},
    nn.CrossEntropyLoss: {"label_smoothing": (0.0, 0.1, 1.0), "ignore_index": (-100,)},
    nn.HuberLoss: {"delta": (1e-6, 0.3, 7, 1e6, INF)},
    nn.SmoothL1Loss: {"beta": (1e-6, 0.3, 7, 1e6)},
    nn.PoissonNLLLoss: {"log_input": (True,), "full": (False,), "eps": (1e-8, 0.5)},
    nn.SoftMarginLoss: {},
}
"""What every option is swept over, besides both reductions."""

REFUSED: dict[type, dict[str, tuple[Any, ...]]] = {
    nn.BCEWithLogitsLoss: {"weight": (torch.ones(3),), "pos_weight": (torch.ones(3),)},
    nn.CrossEntropyLoss: {
        "weight": (torch.ones(3),),
        "ignore_index": (0, 2),
        "label_smoothing": (-0.1, 1.5, NAN, INF),
    },
    nn.HuberLoss: {"delta": (0.0, -1.0, NAN, -INF)},
    nn.SmoothL1Loss: {"beta": (0.0, -1.0, NAN, INF)},
    nn.PoissonNLLLoss: {"log_input": (False,), "full": (True,)},
}
"""Options without an exact counterpart."""

LEGACY = {"size_average", "reduce", "reduction", "self"}


def settings(kind: type) -> Iterator[dict[str, Any]]:
    swept = {**OPTIONS[kind], "reduction": ("mean", "sum")}
    for values in itertools.product(*swept.values()):
        yield dict(zip(swept, values, strict=True))


CASES = [(kind, options) for kind in OPTIONS for options in settings(kind)]


def test_every_loss_and_every_option_is_swept_or_refused() -> None:
    assert OPTIONS.keys() == losses_torch.supported_modules()
    for kind, swept in OPTIONS.items():
        known = {*swept, *REFUSED.get(kind, {})}
        assert known == inspect.signature(kind.__init__).parameters.keys() - LEGACY, kind  # type: ignore[misc]
    built_in = set(losses.loss_names()) - set(losses._registered)
    assert NAMED.keys() == built_in


# What the program computes ------------------------------------------------------------------------


def executable(loss: Loss, outputs: int, dtype: torch.dtype, backend: str) -> Executable:
    """Value, gradient, Hessians and columns of their root, of a network that is nothing but its output z."""
    z, end = Node("z", Input(0), (), (outputs,)), Node("output", Output(), ("z",), (outputs,))
    traced = TracedModel(ModelGraph([z, end]), {}, {}, "loss")
    columns = Phase("columns", sees=("gradient",), repeat=Repeat.COLUMNS)
    builder = ProgramBuilder((Phase("gradient"), columns))
    leaf = builder.leaf("input", "0", ("N", outputs))
    with builder.phase("gradient"):
        rules = loss_rules(builder, loss, leaf)
        results = {"loss": rules.value(), "gradient": rules.gradient()}
        results["hessian"] = rules.sample_hessians()
        results["mean"] = builder.dense(rules.mean_hessian())
        results["product"] = rules.hessian_product(leaf)
    with builder.phase("columns"):
        results["columns"] = rules.root_columns()
    builder.columns = outputs
    builder.results = {role: value.name for role, value in results.items()}
    where = {"dtype": dtype, "device": torch.device("cpu"), "backend": backend}
    return Executable(builder.finish(), traced, loss, **where)


class Expected:
    """Autograd's values of one batch in float64, through ``function``."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], z: Tensor, y: Tensor) -> None:
        batch = len(z)

        def of_sample(n: int, row: Tensor) -> Tensor:
            # The objective is a mean over samples of what the rules speak of.
            return batch * function(torch.cat([z[:n], row[None], z[n + 1 :]]), y)

        def hessian(n: int) -> Tensor:
            return torch.func.jacrev(torch.func.grad(lambda row: of_sample(n, row)))(z[n])

        self.z, self.y = z, y
        self.loss = function(z, y)
        self.largest = max(float(of_sample(n, z[n]).abs()) for n in range(batch))
        gradient = batch * torch.func.grad(lambda at: function(at, y))(z)
        hessians = torch.stack([hessian(n) for n in range(batch)])
        self.parts = {
            "gradient": gradient,
            "hessian": hessians,
            "root": hessians,
            "mean": hessians.mean(dim=0)[None],
            "product": (hessians @ z[:, :, None])[:, :, 0],
        }
        self.sizes = {role: _largest(part) for role, part in self.parts.items()}
        # A product is good relative to what is added up in it.
        self.sizes["product"] = _largest(hessians) * _largest(z)


def _largest(x: Tensor) -> Tensor:
    return x.abs().flatten(1).amax(dim=1)


def compare(run: Executable, expected: Expected, dtype: torch.dtype) -> None:
    """The program in ``dtype`` against autograd; ``z [N, K]`` and ``y`` hold numbers that float32 has.

    Allowed are 40 roundings relative to the largest entry of a sample, and for the value relative to the
    largest loss of a sample. Autograd's own ``1 - σ(z)`` is good to a rounding of 1, whatever is left of it.
    """
    z, y = expected.z, expected.y
    batch, outputs = z.shape
    rows = nn.functional.one_hot(y, outputs) if y.dtype == torch.int64 else y
    run.load((z.to(dtype),), rows.to(dtype))
    run.run("gradient", "columns")
    got = {role: run.result(role).double() for role in run.program.results}
    columns = got["columns"].permute(1, 2, 0)
    got |= {"root": columns @ columns.mT, "mean": got["mean"][None]}
    tolerance = 40 * torch.finfo(dtype).eps
    unit = run.loss.scale.value(batch, outputs)
    assert abs(float(got["loss"] - expected.loss)) <= tolerance * (expected.largest + 1e-30)
    for role, wanted in expected.parts.items():
        error, size = _largest(got[role] - wanted), expected.sizes[role]
        assert (error <= tolerance * (size + unit)).all(), (role, error, size)


def sweep(
    loss: Loss, function: Callable[[Tensor, Tensor], Tensor], kind: type, widths: tuple[int, ...]
) -> None:
    """``loss`` on the batches of ``kind``, in both dtypes, emitted and interpreted."""
    for outputs in widths:
        backend = "torch" if outputs == widths[-1] else "reference"
        runs = {dtype: executable(loss, outputs, dtype, backend) for dtype in DTYPES}
        for z, y in batches(kind, outputs):
            expected = Expected(function, z, y)
            for dtype, run in runs.items():
                compare(run, expected, dtype)


Z = torch.tensor(
    [
        [0.25, -1.5, 2.0],
        [0.0, 0.0, 0.0],
        [40.0, -40.0, 3.0],
        [1000.0, -1000.0, 998.0],
        [-7.5, 0.125, -0.0625],
    ],
    dtype=torch.float64,
)


def batches(kind: type, outputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    rows = {nn.PoissonNLLLoss: [0, 1, 4], nn.SoftMarginLoss: [0, 1, 2, 4]}
    z = Z[
        rows.get(kind, [0, 1, 2, 3, 4]), :outputs
    ]  # where torch's own loss and float32 are finite
    pattern = torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.5, 0.0], [0.25, 0.25, 0.5]])
    y = pattern.repeat(2, 1)[: len(z), :outputs].double()
    if kind is nn.CrossEntropyLoss:
        yield z, torch.arange(len(z)) % outputs
        yield z, y / y.sum(dim=1, keepdim=True)
        y = y * torch.tensor([[1.5], [0.0], [0.5], [1.0], [3.0]])  # rows of any mass
    elif kind is nn.SoftMarginLoss:
        y = torch.where(y < 0.4, -1.0, 1.0).double()
    elif kind is nn.PoissonNLLLoss:
        y = 3 * y
    elif kind in (nn.HuberLoss, nn.SmoothL1Loss, nn.MSELoss):
        y = y - 0.40625
    yield z, y
    yield z[:1], y[:1]


@pytest.mark.parametrize(
    ("kind", "options"), CASES, ids=[f"{k.__name__}-{list(o.values())}" for k, o in CASES]
)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_modules(kind: type, options: dict[str, Any]) -> None:
    module = kind(**options)
    loss = resolve_loss(module)
    sweep(loss, module, kind, (2, 3) if kind is nn.CrossEntropyLoss else (1, 3))


def summed(each: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda z, y: each(z, y).sum() / len(z)


def elementwise(module: type[Any]) -> Callable[[Tensor, Tensor], Tensor]:
    return summed(module(reduction="none"))


NAMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": summed(lambda z, y: (z - y) ** 2 / 2),
    "bce_with_logits": elementwise(nn.BCEWithLogitsLoss),
    "cross_entropy": nn.CrossEntropyLoss(),
    "huber": elementwise(nn.HuberLoss),
    "smooth_l1": elementwise(nn.SmoothL1Loss),
    "poisson_nll": elementwise(nn.PoissonNLLLoss),
    "log_cosh": summed(lambda z, y: z - y - nn.functional.logsigmoid(2 * (z - y)) - math.log(2)),
    "soft_margin": summed(lambda z, y: -nn.functional.logsigmoid(y * z)),
}
"""The convention of names: summed over outputs, averaged over samples."""
LIKE = {
    "cross_entropy": nn.CrossEntropyLoss,
    "poisson_nll": nn.PoissonNLLLoss,
    "soft_margin": nn.SoftMarginLoss,
    "bce_with_logits": nn.BCEWithLogitsLoss,
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_names(name: str) -> None:
    sweep(resolve_loss(name), NAMED[name], LIKE.get(name, nn.MSELoss), (3,))


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [(k, o, v) for k, options in REFUSED.items() for o, values in options.items() for v in values],
    ids=str,
)
def test_options_without_a_counterpart_are_refused(kind: type, option: str, value: object) -> None:
    with pytest.raises(LossError, match=option) as refusal:
        resolve_loss(kind(**{option: value}))
    assert "what to do" in str(refusal.value)


SAMPLE = (
    nn.MSELoss(reduction="sum"),
    nn.BCEWithLogitsLoss(),
    nn.CrossEntropyLoss(label_smoothing=1.0),
    nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"),
    nn.HuberLoss(delta=INF),
    nn.SmoothL1Loss(beta=0.3),
    nn.PoissonNLLLoss(),
    nn.SoftMarginLoss(),
)


@pytest.mark.parametrize("module", SAMPLE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_whole_compile(module: nn.Module, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3)).to(dtype)
    _, y = next(batches(type(module), 3))
    x = torch.randn(len(y), 4, dtype=dtype)
    y = y if y.dtype == torch.int64 else y.to(dtype)
    trainer = gncompile.compile(model, module, x)
    found = trainer.gradients(x, y)
    parameters = dict(model.named_parameters())
    expected = torch.autograd.grad(module(model(x), y), parameters.values())
    for name, wanted in zip(parameters, expected, strict=True):
        error = (found[name] - wanted).abs().max()
        assert error <= 40 * torch.finfo(dtype).eps * wanted.abs().max(), name
