"""``nn.RNN``, ``nn.GRU``, ``nn.LSTM`` and their cells, unrolled, while a module is exported.

A recurrence is a layer called at every step, ``W_hh`` once at each of T steps and ``W_ih`` at T places at
once, as PyTorch defines it::

    rnn    h' = φ(W_ih x + b_ih + W_hh h + b_hh)
    gru    r, z = σ(…), n = tanh(W_in x + b_in + r ⊙ (W_hn h + b_hn)),  h' = (1 − z) ⊙ n + z ⊙ h
    lstm   i, f, o = σ(…), g = tanh(…),  c' = f ⊙ c + i ⊙ g,  h' = o ⊙ tanh(c'), or its projection W_hr h'
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import TraceError

State = tuple[Tensor, ...]
"""``(h,)``, and of an LSTM ``(h, c)``: ``[N, H]`` each."""
Step = Callable[[Tensor, Tensor, State], State]
"""The next state, from what ``W_ih`` makes of x, what ``W_hh`` makes of h, and the state."""


def _lstm(x: Tensor, y: Tensor, state: State) -> State:
    i, f, g, o = (x + y).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, y: Tensor, state: State) -> State:
    (rx, zx, nx), (ry, zy, ny) = x.chunk(3, -1), y.chunk(3, -1)
    z = (zx + zy).sigmoid()
    n = (nx + (rx + ry).sigmoid() * ny).tanh()
    return ((1 - z) * n + z * state[0],)


_STEPS: Mapping[str, Step] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN_TANH": lambda x, y, state: ((x + y).tanh(),),
    "RNN_RELU": lambda x, y, state: ((x + y).relu(),),
}


def recurrence(
    m: nn.RNNBase, name: str, x: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Any]:
    """What ``m(x, hx)`` returns: all outputs, and the last states ``[layers · directions, N, H]``."""
    _check(m, name, x, 3)
    x = x if m.batch_first else x.transpose(0, 1)
    directions = 2 if m.bidirectional else 1
    given = hx if isinstance(hx, tuple) else (hx,)
    last: list[State] = []
    for layer in range(m.num_layers):
        outputs = []
        for backwards in range(directions):
            state = _initial(m, x, None if hx is None else tuple(h[len(last)] for h in given))  # type: ignore[index]
            y, state = _unrolled(m, x, state, f"_l{layer}" + "_reverse" * backwards)
            outputs.append(y)
            last.append(state)
        x = torch.cat(outputs, -1)
        if layer + 1 < m.num_layers:
            x = F.dropout(x, m.dropout, m.training)
    states = tuple(torch.stack(h, 1).transpose(0, 1) for h in zip(*last, strict=True))
    y = x if m.batch_first else x.transpose(0, 1)
    return y, states if m.mode == "LSTM" else states[0]


def cell(
    m: nn.RNNCellBase, name: str, x: Tensor, hx: Tensor | tuple[Tensor, Tensor] | None = None
) -> Tensor | State:
    """What ``m(x, hx)`` returns: the next state."""
    _check(m, name, x, 2)
    mode = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}.get(type(m))
    step = _STEPS[mode or f"RNN_{m.nonlinearity.upper()}"]  # type: ignore[operator, union-attr]
    zeros = x.new_zeros(x.shape[0], m.hidden_size)
    given = hx if isinstance(hx, tuple) else (hx,)
    state = (zeros, zeros) if hx is None else given
    gates = F.linear(x, m.weight_ih, m.bias_ih)
    new = step(gates, F.linear(state[0], m.weight_hh, m.bias_hh), state)  # type: ignore[arg-type]
    return new if mode == "LSTM" else new[0]


def _unrolled(m: nn.RNNBase, x: Tensor, state: State, suffix: str) -> tuple[Tensor, State]:
    """The outputs ``[N, T, H]`` of one layer in one direction, and its last state."""
    w_ih, w_hh, b_ih, b_hh, w_hr = (
        getattr(m, which + suffix, None)
        for which in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    )
    assert isinstance(w_ih, Tensor)
    assert isinstance(w_hh, Tensor)
    gates, outputs = F.linear(x, w_ih, b_ih), [state[0]] * x.shape[1]
    times = range(x.shape[1])
    for t in reversed(times) if suffix.endswith("_reverse") else times:
        state = _STEPS[m.mode](gates[:, t], F.linear(state[0], w_hh, b_hh), state)
        if w_hr is not None:
            state = (F.linear(state[0], w_hr), state[1])
        outputs[t] = state[0]
    return torch.stack(outputs, 1), state


def _initial(m: nn.RNNBase, x: Tensor, given: State | None) -> State:
    """The state to begin with: zeros if none is given."""
    if given is not None:
        return given
    h = x.new_zeros(x.shape[0], m.proj_size or m.hidden_size)
    return (h, x.new_zeros(x.shape[0], m.hidden_size)) if m.mode == "LSTM" else (h,)


def _check(m: nn.Module, name: str, x: Any, dimensions: int) -> None:
    """Raise :class:`TraceError` for an input that is no batch of sequences, or of steps, of one length."""
    found = instead = ""
    if not isinstance(x, Tensor):
        found, instead = "a packed sequence has lengths that differ", "give it [N, T, features]"
    elif x.dim() != dimensions:
        found = f"its input of {x.dim()} dimensions has no batch"
        instead = "give it a batch, [N, T, features], and its cell [N, features]"
    elif x.dim() == 3 and not isinstance(x.shape[1 if getattr(m, "batch_first", True) else 0], int):
        found = "its first dimension is time, while dimension 0 is the batch"
        instead = "construct it with batch_first=True, and give it [N, T, features]"
    if found:
        raise TraceError(
            f"nn.{type(m).__name__} cannot be compiled: {found}",
            where=f"module {name!r}",
            instead=instead,
        )
