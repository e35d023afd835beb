"""Modules whose forward is written out in operators that have rules, while a module is exported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from .attention import attention
from .recurrent import cell, recurrence

FORWARDS: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.MultiheadAttention: attention,
    **dict.fromkeys((nn.RNN, nn.GRU, nn.LSTM), recurrence),
    **dict.fromkeys((nn.RNNCell, nn.GRUCell, nn.LSTMCell), cell),
}
"""By kind of module: what computes the same as its forward, of the module, its name and the arguments."""


@contextmanager
def written_out(module: nn.Module) -> Iterator[None]:
    """Inside, what :data:`FORWARDS` lists is traced as there, and encoder layers as they are trained."""
    kinds = {
        m: (name, kind)
        for name, m in module.named_modules()
        for kind in FORWARDS
        if isinstance(m, kind) and type(m).forward is kind.forward and _compiled(m)
    }
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(
            False
        )  # one operator for a whole layer, for inference
        for m, (name, kind) in kinds.items():
            m.forward = partial(FORWARDS[kind], m, name)
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for m in kinds:
            vars(m).pop("forward", None)


def _compiled(m: nn.Module) -> bool:
    """A frozen recurrence is left whole: it belongs to a trunk, which runs as it is."""
    recurrent = isinstance(m, nn.RNNBase | nn.RNNCellBase)
    return not recurrent or any(p.requires_grad for p in m.parameters())
