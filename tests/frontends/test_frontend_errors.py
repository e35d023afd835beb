"""What the PyTorch frontend refuses, and in which words: what, where in the user's model, what to do."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gncompile
from gncompile.errors import BatchError, TraceError
from gncompile.frontends import trace


class Function(nn.Module):
    """A function of module and features, on top of one linear layer."""

    def __init__(self, function: Callable[[Function, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.fc(x))


def refused(module: nn.Module, *parts: str, shape: tuple[int, ...] = (4,), batch: int = 3) -> str:
    """The text of the TraceError, after checking that it contains every part."""
    with pytest.raises(TraceError) as caught:
        trace(module, torch.randn(batch, *shape))
    text = str(caught.value)
    for part in parts:
        assert part in text, f"expected {part!r} in:\n{text}"
    assert re.search(r"what to do: \w", text)
    return text


SAMPLES: dict[str, Callable[[Tensor], Tensor]] = {
    "batch mean": lambda h: h - h.mean(0),
    "batch sum": lambda h: h + h.sum(dim=0, keepdim=True),
    "total mean": lambda h: h / h.mean(),
    "cat": lambda h: torch.cat([h, h], dim=0),
    "flip": lambda h: h.flip(0),
    "roll": lambda h: h.roll(5, 0),
    "cumsum": lambda h: h.cumsum(0),
    "select": lambda h: h[0] + h,
    "transpose": lambda h: h.t() + 1,
    "view": lambda h: h.view(-1, 2),
    "glu": lambda h: functional.glu(torch.cat([h, h], dim=0), dim=0),
    "pairwise": lambda h: h[:, None] - h[None],
    "index": lambda h: h[[0, 1]],
    "matmul": lambda h: h @ h.T,
    "matmul of a row each": lambda h: h @ h[:, :, None],
    "einsum": lambda h: torch.einsum("ni,mi->nm", h, h),
    "softmax": lambda h: h.softmax(0),
    "normalize": lambda h: functional.normalize(h, dim=0),
    "mean": lambda h: h[:, None].mean((0, 1)),
}


@pytest.mark.parametrize("function", SAMPLES.values(), ids=SAMPLES.keys())
def test_mixing_samples(function: Callable[[Tensor], Tensor]) -> None:
    text = refused(Function(lambda _, h: function(h)), "mixes samples", "dimension 0 is the batch")
    assert "test_frontend_errors.py:" in text


OPERATORS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[str, ...]]] = {
    "median": (
        lambda h: h.median(-1, keepdim=True)[0],
        ("median cannot be compiled", "the order of a sample's features", "amax, amin"),
    ),
    "random": (lambda h: h + torch.randn_like(h), ("random numbers",)),
    "detach": (lambda h: h * h.detach(), ("detach cannot be compiled", "cuts the gradient")),
    "rounding": (lambda h: h.round(), ("slope is zero",)),
    "division that rounds": (
        lambda h: torch.div(h, 2, rounding_mode="floor"),
        ("div cannot be compiled", "no useful slope"),
    ),
    "tensor power": (lambda h: h.abs() ** h, ("pow cannot be compiled", "number as exponent")),
    "unknown": (
        lambda h: torch.i0(h),
        ("aten.i0.default is not supported", "elementwise: abs, ", "avg_pool2d"),
    ),
    "dtype": (lambda h: h.double(), ("a cast to torch.float64", "torch.float32")),
    "batch size": (lambda h: h / h.shape[0], ("computes with the batch size",)),
    "infinity": (lambda h: h.clamp(max=float("inf")), ("uses the number inf",)),
}


@pytest.mark.parametrize(("function", "parts"), OPERATORS.values(), ids=OPERATORS.keys())
def test_unsupported_operator(function: Callable[[Tensor], Tensor], parts: tuple[str, ...]) -> None:
    text = refused(Function(lambda _, h: function(h)), *parts)
    assert "test_frontend_errors.py:" in text


def test_no_grad_inside_forward() -> None:
    def forward(module: Function, h: Tensor) -> Tensor:
        with torch.no_grad():
            k = h.sin()
        return h * k

    text = refused(Function(forward), "torch.no_grad() inside forward cuts the gradient")
    assert "k = h.sin()" in text


def test_no_grad_around_a_weight() -> None:
    def forward(module: Function, h: Tensor) -> Tensor:
        with torch.no_grad():
            weight = module.other.weight.t()  # type: ignore[union-attr]
        return h @ weight  # type: ignore[operator]

    module = Function(forward)
    module.other = nn.Linear(4, 4, bias=False)
    refused(module, "torch.no_grad() inside forward cuts the gradient")


def test_detached_weight() -> None:
    module = Function(lambda self, h: functional.linear(h, self.other.weight.detach()))  # type: ignore[union-attr]
    module.other = nn.Linear(4, 4, bias=False)
    refused(module, "detach cannot be compiled: it cuts the gradient")


def test_recurrent_function() -> None:
    class Recurrent(nn.LSTM):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)[0].flatten(1)

    module = Recurrent(3, 2, batch_first=True)
    refused(module, "lstm cannot be compiled: it is unrolled only as a module", shape=(5, 3))


# modes


def test_batch_norm_in_training_mode() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False))
    text = refused(module, "batch norm in training mode mixes samples", "call .eval()")
    assert "module '1'" in text
    trace(module.eval(), torch.randn(3, 4))


# parameters


class Tied(nn.Module):
    """An autoencoder-like pair of layers; the subclasses tie them in three ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


def test_lookups_without_a_rule() -> None:
    class Looked(nn.Module):
        def __init__(self, table: nn.Module) -> None:
            super().__init__()
            self.table = table

        def forward(self, x: Tensor) -> Tensor:
            return self.table(x).flatten(1)

    x = torch.arange(6).view(2, 3)
    with pytest.raises(TraceError, match=r"embedding_bag cannot[\s\S]*embedding\(x\).mean\(1\)"):
        trace(Looked(nn.EmbeddingBag(9, 4)), x)
    with pytest.raises(TraceError, match=r"max_norm rescales rows[\s\S]*functional.normalize"):
        trace(Looked(nn.Embedding(9, 4, max_norm=1.0)), x)
    module = Function(lambda self, h: h.gather(1, (h > 0).long()))
    refused(module, "gather cannot be compiled: which features it takes depends", "torch.where")


def test_parameters_without_elements() -> None:
    module = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 2))
    refused(module, "0.weight, 0.bias, 1.weight have no elements", "give the layers features")


def test_weight_computed_by_what_has_no_rule() -> None:
    module = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    refused(module, "is computed of trainable parameters by what has no rule", "freeze")


def test_unused_parameters_are_named_together() -> None:
    module = Tied()
    module.third = nn.Linear(2, 2)
    refused(
        module,
        "does not depend on the trainable parameters third.weight, third.bias",
        "freeze them with requires_grad_(False)",
    )
    module.third.requires_grad_(False)
    trace(module, torch.randn(2, 4))


def test_output_that_ignores_the_input() -> None:
    module = Function(lambda self, h: torch.ones_like(h))
    refused(module, "is no function of its input")


# control flow, batch size, outputs, inputs


def test_data_dependent_control_flow() -> None:
    def forward(module: Function, h: Tensor) -> Tensor:
        if h.sum() > 0:
            return h
        return -h

    text = refused(Function(forward), "control flow in Function depends on the data", "torch.where")
    assert re.search(r"test_frontend_errors.py:\d+, if h.sum\(\) > 0:", text)


@pytest.mark.parametrize("batch", [1, 3])
def test_fixed_batch_size(batch: int) -> None:
    module = Function(lambda self, h: h.view(batch, 2, 2).flatten(1))
    refused(module, "the model fixes the batch size", "x.shape[0] or -1", batch=batch)


def test_branch_on_the_batch_size() -> None:
    module = Function(lambda self, h: h if h.shape[0] > 2 else -h)
    refused(module, "the model fixes the batch size")


def test_slice_of_the_batch() -> None:
    refused(Function(lambda self, h: h[1:]), "the model fixes the batch size", "nor slice it")


def test_several_outputs() -> None:
    refused(Function(lambda self, h: (h, [h.sin()])), "a structure of 2 outputs", "a tuple, a list")  # type: ignore[arg-type, return-value]


def test_model_that_fails_by_itself() -> None:
    refused(nn.Linear(3, 2), "Linear itself fails on the example inputs", "mat1 and mat2")


def test_updated_buffer() -> None:
    module = Function(lambda self, h: h + self.count.add_(1))  # type: ignore[operator]
    module.register_buffer("count", torch.zeros(()))
    refused(module, "forward changes the buffers count")


BAD_INPUTS: dict[Callable[[], object], str] = {
    lambda: np.zeros((2, 3)): "not tensors but ndarray",
    lambda: {"x": torch.zeros(2, 3)}: "the example inputs are a dict",
    lambda: (2, 3): "pass a tensor of that shape, torch.zeros(2, 3)",
    lambda: (): "the example inputs are empty",
    lambda: None: "not tensors but NoneType",
    lambda: torch.zeros(()): "the example inputs have shapes []",
    lambda: torch.zeros(0, 3): "the example inputs have shapes [0, 3]",
    lambda: torch.zeros(2, 3, dtype=torch.complex64): "example input 0 is complex",
    lambda: torch.zeros(2, 3).to_sparse(): "pass it as x.to_dense()",
    lambda: (torch.zeros(2, 3), torch.zeros(2, 3).double()): "dtypes torch.float32, torch.float64",
}


def test_bad_example_inputs() -> None:
    module = nn.Linear(3, 2)
    with pytest.raises(TraceError, match=r"have dtypes torch.int64"):
        trace(module, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TraceError, match=r"shapes \[2, 3\], \[4, 3\]"):
        trace(module, (torch.zeros(2, 3), torch.zeros(4, 3)))
    with pytest.raises(TraceError, match=r"the example inputs are not tensors"):
        trace(module, [1.0])  # type: ignore[arg-type]
    for given, part in BAD_INPUTS.items():
        with pytest.raises(TraceError, match=re.escape(part)) as caught:
            trace(module, given())  # type: ignore[arg-type]
        assert re.search(r"what to do: \w", str(caught.value))
    with pytest.raises(TraceError, match=r"the model is a builtin_function"):
        trace(torch.tanh, torch.zeros(2, 3))  # type: ignore[arg-type]


def test_matrix_too_large() -> None:
    module = Function(lambda self, h: h.repeat(1, 5000).cumsum(1)[:, :2])
    refused(
        module, "cumsum maps 20000 features to 20000", "400,000,000 entries", "reduce the number"
    )


def test_whole_numbers_are_no_inputs_of_a_network_of_real_ones() -> None:
    with pytest.raises(BatchError, match="holds uint8, and the network computes with floating"):
        gncompile.compile(nn.Linear(3, 2), "mse", torch.ones(2, 3, dtype=torch.uint8), tune="off")


# several obstacles at once


def test_all_obstacles_at_once() -> None:
    module = nn.Sequential(
        nn.Linear(4, 4),
        nn.PReLU(),
        nn.Linear(4, 4),
        nn.BatchNorm1d(4),
        nn.RReLU(),
        nn.Linear(4, 2),
    )
    text = refused(module, "cannot be compiled, for 2 reasons", "module '3'", "module '4'")
    assert "batch norm in training mode" in text
    module[3].eval()
    module[4].eval()
    trace(module, torch.randn(3, 4))
    module.requires_grad_(False)
    module[0].requires_grad_(True)
    trace(module, torch.randn(3, 4))


def test_selection_by_a_mask() -> None:
    module = Function(lambda self, h: h[:, torch.tensor([True, False, True, True])])
    refused(module, "the number of features index gives depends on values", "h[:, [0, 2]]")


def test_assignment_to_a_part() -> None:
    def forward(module: Function, h: Tensor) -> Tensor:
        h[:, 0] = 0
        return h

    refused(Function(forward), "a value is assigned to a part of a tensor", "torch.cat")


def test_graph_of_a_failed_export_is_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    refused(Function(lambda self, h: h if h.sum() > 0 else -h), "control flow")
    assert capfd.readouterr().err == ""


def test_a_shape_that_does_not_fit_is_told_by_our_error_alone() -> None:
    """And not by torch's log of its own traceback, whose handler writes to the stderr of torch's start."""
    records: list[logging.LogRecord] = []
    logger, handler = logging.getLogger("torch._subclasses.fake_tensor"), logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        with pytest.raises(TraceError, match="mat1 and mat2"):
            trace(nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 5))
        logger.error("something else")
    finally:
        logger.removeHandler(handler)
    assert [record.msg for record in records] == ["something else"]


def test_what_forward_prints_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    def forward(module: Function, h: Tensor) -> Tensor:
        print("here", file=sys.stderr)
        return h if h.sum() > 0 else -h

    refused(Function(forward), "control flow")
    printed = capfd.readouterr().err
    assert "here" in printed
    assert "aten" not in printed
