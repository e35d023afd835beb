"""Norms, softmax, products of two activations and attention as users write them.

``trace`` compares the graph with the module on random numbers, so a graph of the expected kinds is a right
one; what is compiled from it is tested in ``tests/derivation/test_maps.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gncompile
from gncompile.errors import TraceError
from gncompile.frontends import trace
from gncompile.graph.nodes import FixedLinear

N, T, E = 3, 6, 8
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()
BLIND = CAUSAL.clone()
BLIND[2] = False
ADDED = torch.zeros(T, T).masked_fill(~CAUSAL, -torch.inf)


def heads(x: Tensor, count: int = 2) -> Tensor:
    """``[N, T, E]`` as ``[N, H, T, E / H]``."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def twice(x: Tensor, **options: Any) -> Tensor:
    """Attention with two different operands."""
    return F.scaled_dot_product_attention(x, x.sin(), x, **options)


KINDS = ("Centre", "Normalise", "Softmax", "Bilinear", "FixedLinear")
FUNCTIONS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "layer norm": (lambda x: F.layer_norm(x, (E,)), "Centre Normalise"),
    "layer norm of all": (lambda x: F.layer_norm(x, (T, E)), "Centre Normalise"),
    "group norm": (lambda x: F.group_norm(x, 3), "Centre Normalise"),
    "instance norm": (lambda x: F.instance_norm(x), "Centre Normalise"),
    "rms norm": (lambda x: F.rms_norm(x, (E,)), "Normalise"),
    "rms norm with eps": (lambda x: F.rms_norm(x, (E,), eps=0.1), "Normalise"),
    "normalize": (lambda x: F.normalize(x, dim=-1), "Normalise"),
    "normalize columns": (lambda x: F.normalize(x, dim=1), "Normalise"),
    "normalize with eps": (lambda x: F.normalize(x, dim=-1, eps=3.0), "Normalise"),
    "norm": (lambda x: x.norm(dim=-1), "FixedLinear"),
    "vector norm": (lambda x: x / (1 + torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)), "FixedLinear"),
    "softmax": (lambda x: x.softmax(-1), "Softmax"),
    "softmax over tokens": (lambda x: x.softmax(1), "Softmax"),
    "log-softmax": (lambda x: x.log_softmax(-1), "Softmax"),
    "softmin": (nn.Softmin(-1), "Softmax"),
    "mean over tokens": (lambda x: x.mean(1), "FixedLinear"),
    "mean over features": (lambda x: x.mean(-1), "FixedLinear"),
    "sum of two dimensions": (lambda x: heads(x).sum((1, 3)), "FixedLinear FixedLinear"),
    "product": (lambda x: x @ x.mT, "Bilinear"),
    "product, not square": (lambda x: x.mT @ x[:, :, :3], "Bilinear"),
    "bmm": (lambda x: torch.bmm(x, x.sin().transpose(1, 2)), "Bilinear"),
    "baddbmm": (lambda x: torch.baddbmm(x[:, :, :T], x, x.mT, beta=0.5, alpha=2.0), "Bilinear"),
    "product, broadcast": (lambda x: heads(x) @ heads(x)[:, :1].mT, "Bilinear"),
    "einsum": (lambda x: torch.einsum("ntd,nsd->nts", x, x), "Bilinear"),
    "einsum of heads": (
        lambda x: torch.einsum("nthd,nshd->nhst", *[x.unflatten(2, (2, 4))] * 2),
        "Bilinear",
    ),
    "einsum, outer": (lambda x: torch.einsum("ni,nj->nij", x[:, 0], x[:, 1]), "Bilinear"),
    "attention": (twice, "Bilinear Softmax Bilinear"),
    "attention, causal": (lambda x: twice(x, is_causal=True), "Bilinear Softmax Bilinear"),
    "attention, masked": (lambda x: twice(x, attn_mask=CAUSAL), "Bilinear Softmax Bilinear"),
    "attention, added mask": (lambda x: twice(x, attn_mask=ADDED.double()), "Bilinear Softmax Bilinear"),
    "attention, a blind query": (lambda x: twice(x, attn_mask=BLIND), "Bilinear Softmax Bilinear"),
    "attention by hand": (
        lambda x: (x @ x.mT).masked_fill(~CAUSAL, -torch.inf).softmax(-1) @ x,
        "Bilinear Softmax Bilinear",
    ),
    "attention of heads": (
        lambda x: F.scaled_dot_product_attention(heads(x), heads(x), heads(x)).transpose(1, 2),
        "Bilinear Softmax Bilinear",
    ),
    "attention of grouped heads": (
        lambda x: F.scaled_dot_product_attention(
            heads(x, 4), *[heads(x, 4)[:, :2]] * 2, scale=0.3, enable_gqa=True
        ),
        "Bilinear Softmax Bilinear",
    ),
}  # fmt: skip


class Functions(nn.Module):
    """Functions of ``[N, T, E]`` beside each other, each after a scale, so that its gradient is seen."""

    def __init__(self, *functions: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.functions = functions
        self.scale = nn.Parameter(torch.rand(len(functions), E).double() + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scaled = zip(self.functions, self.scale, strict=True)
        return torch.cat([function(x * s).flatten(1) for function, s in scaled], dim=1)


def kinds(module: nn.Module) -> Counter[str]:
    """How many nodes there are of the kinds that mix features."""
    graph = trace(module, torch.randn(N, T, E).double()).graph
    return Counter(k for n in graph if (k := type(n.op).__name__) in KINDS)


@pytest.mark.parametrize("part", range(3))
def test_functions_are_traced_as_torch_computes_them(part: int) -> None:
    functions, expected = zip(*list(FUNCTIONS.values())[part::3], strict=True)
    assert kinds(Functions(*functions)) == Counter(" ".join(expected).split())


Call = Callable[[nn.Module, Tensor], Tensor]
ATTENTION: dict[str, tuple[dict[str, Any], Call]] = {
    "self": ({}, lambda m, x: m(x, x, x)[0]),
    "without weights": ({}, lambda m, x: m(x, x, x, need_weights=False)[0]),
    "without biases": ({"bias": False}, lambda m, x: m(x, x, x)[0]),
    "its weights": ({}, lambda m, x: torch.cat(m(x, x, x), -1)),
    "masked": ({}, lambda m, x: m(x, x, x, attn_mask=~CAUSAL)[0]),
    "masked, without weights": (
        {},
        lambda m, x: m(x, x, x, attn_mask=~CAUSAL, need_weights=False, is_causal=True)[0],
    ),
    "added mask": ({}, lambda m, x: m(x, x, x, attn_mask=ADDED.double())[0]),
    "cross": ({}, lambda m, x: m(x, x.sin(), x.sin(), need_weights=False)[0]),
    "other widths": (
        {"kdim": 4, "vdim": 3},
        lambda m, x: m(x, x[:, :, :4], x[:, :, :3], need_weights=False)[0],
    ),
}


class Attending(nn.Module):
    """``nn.MultiheadAttention`` called in some ways, each with a module of its own."""

    def __init__(self, *calls: Call, options: Sequence[dict[str, Any]] = ({},)) -> None:
        super().__init__()
        self.calls = calls
        each = [{"batch_first": True, **given} for given in options]
        self.attentions = nn.ModuleList(nn.MultiheadAttention(E, 2, **given) for given in each)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        calls = zip(self.calls, self.attentions, strict=True)
        return torch.cat([call(attention, x).flatten(1) for call, attention in calls], dim=1)


def test_multihead_attention_is_two_products_and_a_softmax() -> None:
    options, calls = zip(*ATTENTION.values(), strict=True)
    module = Attending(*calls, options=options)
    found = kinds(module)
    assert (found["Bilinear"], found["Softmax"]) == (2 * len(calls), len(calls))
    assert not any("forward" in vars(m) for m in module.attentions)  # the user's are as they were


@pytest.mark.parametrize(("norm_first", "frozen"), [(False, True), (True, False)])
def test_encoder_layers_never_take_the_fast_path(norm_first: bool, frozen: bool) -> None:
    layer = nn.TransformerEncoderLayer(
        E, 2, 5, dropout=0.0, batch_first=True, norm_first=norm_first, activation="gelu"
    )
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).double()
    found = kinds(encoder.eval().requires_grad_(not frozen))
    assert (found["Centre"], found["Bilinear"], found["Softmax"]) == (4, 4, 2)


def test_decoder_layer() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerDecoderLayer(E, 2, 5, dropout=0.0, batch_first=True).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x.cos(), tgt_mask=ADDED.double())

    assert kinds(Decoder())["Bilinear"] == 4


def test_means_over_tokens_have_a_small_matrix() -> None:
    traced = trace(Functions(lambda x: x.mean(1)), torch.randn(N, T, E).double())
    (node,) = (node for node in traced.graph if isinstance(node.op, FixedLinear))
    assert isinstance(node.op, FixedLinear)
    assert traced.constants[node.op.matrix].shape == (1, T)
    assert (node.op.before, node.op.after) == (1, E)


REFUSED: dict[str, tuple[nn.Module, str, str]] = {
    "time first": (
        Attending(lambda m, x: m(x, x, x)[0], options=[{"batch_first": False}]),
        "its first dimension is time",
        "batch_first=True",
    ),
    "appended keys": (
        Attending(lambda m, x: m(x, x, x)[0], options=[{"add_bias_kv": True}]),
        "appends keys",
        "add_bias_kv=False",
    ),
    "padding": (
        Attending(lambda m, x: m(x, x, x, key_padding_mask=x[:, :, 0] > 0)[0]),
        "key_padding_mask differs between samples",
        "finite numbers",
    ),
    "a mask a sample": (
        Attending(lambda m, x: m(x, x, x, attn_mask=x[:, :, :T].repeat(2, 1, 1))[0]),
        "three dimensions",
        "[T, S]",
    ),
    "a mask from the input": (
        Functions(lambda x: twice(x, attn_mask=(x @ x.mT) > 0)),
        "computed from the network's input",
        "finite numbers",
    ),
    "einsum of three": (
        Functions(lambda x: torch.einsum("ntd,nsd,nd->nts", x, x, x[:, 0])),
        "ntd,nsd,nd->nts",
        "products of two",
    ),
    "einsum that sums one factor": (
        Functions(lambda x: torch.einsum("ntd,nsd->ns", x, x)),
        "sums t over one factor alone",
        "first",
    ),
    "infinity norm": (
        Functions(lambda x: torch.linalg.vector_norm(x, float("inf"), dim=-1)),
        "a norm of order inf",
        "ord=2",
    ),
    "running statistics": (
        nn.Sequential(nn.Linear(E, E), nn.InstanceNorm1d(T, track_running_stats=True))
        .double()
        .eval(),
        "running statistics",
        "track_running_stats=False",
    ),
}


def test_an_encoder_layer_trains_with_its_dropout() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, 2, 5, batch_first=True).double()
    x = torch.randn(6, T, E).double()
    report = gncompile.verify(layer, "mse", x)
    assert report.ok, [check for check in report.checks if not check.ok]
    trainer = gncompile.compile(layer, "mse", x)
    y = torch.randn(6, T, E).double()
    before = float(trainer.loss(x, y))
    for _ in range(6):
        trainer.step(x, y)
    assert float(trainer.loss(x, y)) < before


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_place_and_remedy(name: str) -> None:
    module, found, instead = REFUSED[name]
    with pytest.raises(TraceError) as caught:
        trace(module, torch.randn(N, T, E).double())
    text = str(caught.value)
    assert found in text
    assert instead in text
    assert "module" in text or "test_attention.py" in text
