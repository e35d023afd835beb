"""Recurrent modules, unrolled: what they return, their derivatives, and what is refused.

``trace`` compares the graph with the module on random numbers, so one that traces computes the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gncompile
from gncompile.errors import TraceError
from gncompile.frontends import trace
from gncompile.losses import resolve_loss
from gncompile.pipeline import factor_program, prepare

N, T = 4, 3


class Net(nn.Module):
    """A recurrence, read as ``read`` says, and a layer after it."""

    def __init__(self, recurrent: nn.Module, read: Callable[..., Tensor], width: int) -> None:
        super().__init__()
        self.r, self.read, self.out = recurrent, read, nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.read(self.r, x))


def last(r: nn.Module, x: Tensor) -> Tensor:
    return r(x)[0][:, -1]


def everything(r: nn.LSTM, x: Tensor) -> Tensor:
    """States of ones and zeros to begin with, outputs of all times, and both last states."""
    count = r.num_layers * (2 if r.bidirectional else 1)
    c = torch.ones(count, x.size(0), r.hidden_size, dtype=x.dtype)
    h = x.new_zeros(count, x.shape[0], r.proj_size or r.hidden_size)
    y, (h, c) = r(x, (h, c))
    return torch.cat([y.sum(1), h[-1], h[0], c.transpose(0, 1).flatten(1)], dim=1)


def time_first(r: nn.Module, x: Tensor) -> Tensor:
    y, h = r(x.permute(1, 0, 2))
    return torch.cat([y[-1], y.transpose(0, 1).mean(1), h.squeeze(0)], dim=1)


def begun(r: nn.Module, x: Tensor) -> Tensor:
    """A state that is computed of the input."""
    return r(x, x[:, 0].repeat(1, 2).tanh()[None, :, :3])[1][0]


def by_cells(r: nn.Module, x: Tensor) -> Tensor:
    state = None
    for t in range(x.shape[1]):
        state = r(x[:, t], state)
    return torch.cat(state, 1) if isinstance(state, tuple) else state  # type: ignore[return-value]


def net(kind: Any, read: Any = last, width: int = 3, **options: Any) -> Callable[[], Net]:
    return lambda: Net(kind(2, 3, **options), read, width)


FIRST = {"batch_first": True}
SMALL = {
    "rnn": net(nn.RNN, **FIRST),
    "gru": net(nn.GRU, **FIRST),
    "lstm": net(nn.LSTM, **FIRST),
    "relu, time first": net(nn.RNN, time_first, 9, nonlinearity="relu", bias=False),
    "gru, begun": net(nn.GRU, begun, **FIRST),
    "lstm, projected": net(nn.LSTM, everything, 9, proj_size=2, **FIRST),
    "lstm cell": net(nn.LSTMCell, by_cells, 6),
}
LARGE = {
    "gru, time first": net(nn.GRU, time_first, 9),
    "lstm, everything": net(
        nn.LSTM, everything, 24, num_layers=2, bidirectional=True, dropout=0.5, bias=False, **FIRST
    ),
    "rnn cell": net(nn.RNNCell, by_cells, 3, nonlinearity="relu"),
    "gru cell": net(nn.GRUCell, by_cells, 3, bias=False),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = {**SMALL, **LARGE}[name]().double()
    return model, torch.randn(N, T, 2, dtype=torch.float64)


@pytest.mark.parametrize("name", SMALL)
def test_everything_is_what_torch_func_says(name: str) -> None:
    """Gradient, tangents, Q, KFLR's Ḡ, KFRA's Ḡ at N = 1, and the quadratic model."""
    model, x = made(name)
    report = gncompile.verify(model, nn.MSELoss(), x)
    assert report.ok, [check for check in report.checks if not check.ok]


@pytest.mark.parametrize("name", LARGE)
def test_computes_what_the_module_computes(name: str) -> None:
    model, x = made(name)
    graph = trace(model.eval(), x).graph
    assert all(layer.startswith(("r.", "out")) for layer in graph.layers)


def test_dropout_between_layers() -> None:
    """In training mode the masks are draws of the program; without a slope to lose it still learns."""
    torch.manual_seed(0)
    model = net(nn.LSTM, num_layers=2, dropout=0.3, **FIRST)().double().train()  # type: ignore[arg-type]
    x, y = torch.randn(N, T, 2).double(), torch.randn(N, 2).double()
    trainer = gncompile.compile(model, "mse", x, method="kfac_rp")
    losses = [trainer.step(x, y).loss for _ in range(12)]
    assert min(losses[-3:]) < losses[0]


def test_modules_are_left_as_they_were() -> None:
    model, x = made("lstm")
    before = model(x)
    trace(model, x)
    assert "forward" not in vars(model.r)
    assert torch.equal(model(x), before)


REFUSED: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "time first": (nn.RNN(2, 3), (N, T, 2), "construct it with batch_first=True"),
    "no batch": (nn.GRU(2, 3), (N, 2), "give it a batch"),
    "no batch of a cell": (nn.GRUCell(2, 3), (N, T, 2), "its input of 3 dimensions"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_module_and_the_remedy(name: str) -> None:
    module, shape, text = REFUSED[name]
    whole = Net(module, lambda r, x: r(x)[0], 3)
    with pytest.raises(TraceError, match="module 'r'") as caught:
        trace(whole, torch.randn(shape))
    assert text in str(caught.value)


def test_a_long_lstm_has_few_blocks() -> None:
    """KFRA's joint blocks grow with the length of time, not with a power of it."""
    counts = []
    for steps in (8, 16):
        model = net(nn.LSTM, **FIRST)()  # type: ignore[arg-type]
        prepared = prepare(trace(model, torch.randn(N, steps, 2)).graph)
        program = factor_program(prepared, resolve_loss("mse"), "kfra")
        counts.append(len(program.instructions))
    assert counts[1] < 2.2 * counts[0]
