"""Random small networks for property tests, as specifications that print in one line.

Grammar, with the printed form on the right::

    chain  ::=  op op ...                             L7 tanh sum[id | L7- relu L7] L3
    op     ::=  Linear(width, bias)                   L7, or L7- without bias
            |   Act(name)                             tanh
            |   Scale()                               scale        x * s + t, s and t constant
            |   Slice(start, stop, step)              [0:6:2]
            |   Pool(size, kind)                      mean2, avg_pool2
            |   Fork(join, chains)                    sum[chain | chain], cat[...], product[...]

A residual is ``sum[id | ...]``, a gate ``product[L5 | L5 sigmoid]``, a fork any of the three.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "softplus": F.softplus,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "sin": torch.sin,
}
PIECEWISE_LINEAR = ("identity", "relu", "leaky_relu")
SMOOTH = ("tanh", "sigmoid", "softplus", "silu", "gelu", "gelu_tanh", "sin")


# --- specifications -------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Linear:
    """An affine layer to ``width`` features."""

    width: int
    bias: bool = True

    def __repr__(self) -> str:
        return f"L{self.width}" + ("" if self.bias else "-")


@dataclass(frozen=True, repr=False)
class Act:
    """A transfer function by name."""

    name: str

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class Scale:
    """A fixed scale and shift per feature."""

    def __repr__(self) -> str:
        return "scale"


@dataclass(frozen=True, repr=False)
class Slice:
    """Features ``start:stop:step``."""

    start: int
    stop: int
    step: int

    def __repr__(self) -> str:
        return f"[{self.start}:{self.stop}:{self.step}]"


@dataclass(frozen=True, repr=False)
class Pool:
    """Averages of ``size`` neighbouring features, written as a mean or as an average pooling."""

    size: int
    kind: str

    def __repr__(self) -> str:
        return f"{self.kind}{self.size}"


@dataclass(frozen=True, repr=False)
class Fork:
    """Chains that read one tensor, joined by sum, cat or product; an empty chain is the
    identity."""

    join: str
    chains: tuple[tuple[Op, ...], ...]

    def __repr__(self) -> str:
        return f"{self.join}[{' | '.join(chain_text(chain) for chain in self.chains)}]"


Op = Linear | Act | Scale | Slice | Pool | Fork
Chain = tuple[Op, ...]


def chain_text(chain: Chain) -> str:
    """The chain in one line."""
    return " ".join(map(repr, chain)) or "id"


def width_after(chain: Sequence[Op], width: int) -> int:
    """Number of features after the chain."""
    for op in chain:
        if isinstance(op, Linear):
            width = op.width
        elif isinstance(op, Slice):
            width = len(range(width)[op.start : op.stop : op.step])
        elif isinstance(op, Pool):
            width //= op.size
        elif isinstance(op, Fork):
            widths = [width_after(branch, width) for branch in op.chains]
            width = sum(widths) if op.join == "cat" else widths[0]
    return width


# --- modules --------------------------------------------------------------------------------------


class Activation(nn.Module):
    """A transfer function as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = ACTIVATIONS[name]

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class FixedScale(nn.Module):
    """``x * scale + shift`` with buffers."""

    scale: Tensor
    shift: Tensor

    def __init__(self, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("scale", normal(generator, width).abs() + 0.5)
        self.register_buffer("shift", 0.3 * normal(generator, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


class Features(nn.Module):
    """``x[:, start:stop:step]``."""

    def __init__(self, op: Slice) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.op.start : self.op.stop : self.op.step]


class Averages(nn.Module):
    """Means over groups of neighbouring features."""

    def __init__(self, op: Pool) -> None:
        super().__init__()
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        if self.op.kind == "avg_pool":
            return F.avg_pool1d(x.unsqueeze(1), self.op.size).squeeze(1)
        return x.reshape(x.shape[0], x.shape[1] // self.op.size, self.op.size).mean(dim=-1)


class Forked(nn.Module):
    """Branches that read one tensor; ``backwards`` evaluates them last to first, to the same
    end."""

    def __init__(self, join: str, branches: Sequence[nn.Module]) -> None:
        super().__init__()
        self.join = join
        self.branches = nn.ModuleList(branches)
        self.backwards = False

    def forward(self, x: Tensor) -> Tensor:
        order = list(enumerate(self.branches))
        if self.backwards:
            order.reverse()
        results = {place: branch(x) for place, branch in order}
        parts = [results[place] for place in range(len(results))]
        if self.join == "cat":
            return torch.cat(parts, dim=-1)
        total = parts[0]
        for part in parts[1:]:
            total = total + part if self.join == "sum" else total * part
        return total


def build(chain: Sequence[Op], width: int, generator: torch.Generator) -> nn.Sequential:
    """The chain as modules with seeded float64 weights."""
    modules: list[nn.Module] = []
    for op in chain:
        modules.append(_module(op, width, generator))
        width = width_after([op], width)
    return nn.Sequential(*modules)


def _module(op: Op, width: int, generator: torch.Generator) -> nn.Module:
    if isinstance(op, Linear):
        return _linear(op, width, generator)
    if isinstance(op, Act):
        return Activation(op.name)
    if isinstance(op, Scale):
        return FixedScale(width, generator)
    if isinstance(op, Slice):
        return Features(op)
    if isinstance(op, Pool):
        return Averages(op)
    return Forked(op.join, [build(branch, width, generator) for branch in op.chains])


def _linear(op: Linear, width: int, generator: torch.Generator) -> nn.Linear:
    layer = nn.Linear(width, op.width, bias=op.bias, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(normal(generator, op.width, width) / math.sqrt(width))
        if op.bias:
            layer.bias.copy_(0.3 * normal(generator, op.width))
    return layer


def calibrate(model: nn.Module, x: Tensor) -> None:
    """Rescale each linear layer so that its outputs have root mean square one on ``x``."""

    def rescale(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        scale = output.square().mean().sqrt()
        if scale == 0:
            return output
        for parameter in layer.parameters(recurse=False):
            parameter.div_(scale)
        return output / scale

    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [layer.register_forward_hook(rescale) for layer in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- strategies -----------------------------------------------------------------------------------

WIDTHS = st.one_of(st.integers(1, 6), st.integers(1, 6), st.sampled_from((7, 16, 33, 63, 64, 65)))
SMALL_WIDTHS = st.integers(1, 4)
BLOCKS = ("linear", "residual", "gate", "fork", "halves", "slice", "pool", "scale")


@dataclass(frozen=True)
class Palette:
    """What random networks are made of; without activations and products they are linear."""

    activations: tuple[str, ...] = tuple(ACTIVATIONS)
    blocks: tuple[str, ...] = BLOCKS
    joins: tuple[str, ...] = ("sum", "cat", "product")
    widths: st.SearchStrategy[int] = WIDTHS

    def resized(self, widths: st.SearchStrategy[int]) -> Palette:
        """The same parts in other widths."""
        return replace(self, widths=widths)


ANY = Palette()
SMALL = Palette(widths=SMALL_WIDTHS)
CHAIN = Palette(blocks=("linear",))
PIECEWISE = Palette(PIECEWISE_LINEAR, ("linear", "residual", "fork"), ("sum", "cat"), SMALL_WIDTHS)
DEEP_LINEAR = Palette((), ("linear", "residual", "fork", "slice", "pool", "scale"), ("sum", "cat"))


def _acts(palette: Palette) -> st.SearchStrategy[Chain]:
    if not palette.activations:
        return st.just(())
    return st.sampled_from(palette.activations).map(lambda name: (Act(name),))


def _linears(width: int) -> st.SearchStrategy[Linear]:
    return st.booleans().map(lambda no_bias: Linear(width, not no_bias))


@st.composite
def blocks(draw: st.DrawFn, width: int, palette: Palette, nesting: int) -> Chain:
    """One building block on ``width`` features; residuals nest at most ``nesting`` deep."""
    kind = draw(st.sampled_from(palette.blocks))
    if kind == "residual":
        return (Fork("sum", ((), draw(_residual_bodies(width, palette, nesting)))),)
    if kind == "gate":
        inner = draw(palette.widths)
        gate = (draw(_linears(inner)), *draw(_acts(palette)))
        return (Fork("product", ((draw(_linears(inner)),), gate)),)
    if kind == "fork":
        return (draw(_forks(palette)),)
    if kind == "halves" and width >= 2:
        half = width // 2
        gate = (Slice(half, 2 * half, 1), *draw(_acts(palette)))
        return (Fork("product", ((Slice(0, half, 1),), gate)),)
    if kind == "slice" and width >= 2:
        start = draw(st.integers(0, width - 2))
        return (Slice(start, draw(st.integers(start + 1, width)), draw(st.integers(1, 2))),)
    if kind == "pool" and width % 2 == 0:
        return (Pool(2, draw(st.sampled_from(("mean", "avg_pool")))),)
    if kind == "scale":
        return (Scale(), *draw(_acts(palette)))
    return (draw(_linears(draw(palette.widths))), *draw(_acts(palette)))


@st.composite
def _residual_bodies(draw: st.DrawFn, width: int, palette: Palette, nesting: int) -> Chain:
    middle: Chain = draw(blocks(width, palette, nesting - 1)) if nesting else ()
    inner = draw(_linears(draw(palette.widths)))
    return (*middle, inner, *draw(_acts(palette)), draw(_linears(width)))


@st.composite
def _forks(draw: st.DrawFn, palette: Palette) -> Fork:
    join = draw(st.sampled_from(palette.joins))
    shared = draw(palette.widths)
    chains: list[Chain] = []
    for _ in range(draw(st.integers(2, 3))):
        width = draw(palette.widths) if join == "cat" else shared
        chains.append((draw(_linears(width)), *draw(_acts(palette))))
    return Fork(join, tuple(chains))


@st.composite
def networks(
    draw: st.DrawFn, palette: Palette = ANY, depth: int = 4, bare: bool = False
) -> tuple[int, Chain]:
    """Input width, and a chain: up to ``depth`` blocks, a linear layer, maybe an activation."""
    width = inputs = draw(palette.widths)
    chain: list[Op] = []
    for _ in range(draw(st.integers(1, depth))):
        block = draw(blocks(width, palette, nesting=1))
        if _slices(block) and _joined(chain):
            continue  # it could leave out a whole branch, which then trains nothing
        chain.extend(block)
        width = width_after(block, width)
    chain.append(draw(_linears(draw(palette.widths))))
    if not bare and draw(st.booleans()):
        chain.extend(draw(_acts(palette)))
    return inputs, tuple(chain)


def _slices(block: Chain) -> bool:
    """Whether a block begins with a slice, or with two halves."""
    first = block[0]
    return isinstance(first, Slice) or (
        isinstance(first, Fork)
        and any(chain and isinstance(chain[0], Slice) for chain in first.chains)
    )


def _joined(chain: Sequence[Op]) -> bool:
    """Whether a chain ends in a concatenation, selections from it included."""
    for op in reversed(chain):
        if not isinstance(op, Slice) and op != Act("identity"):
            return isinstance(op, Fork) and op.join == "cat"
    return False


@st.composite
def one_pointwise_layer(draw: st.DrawFn) -> tuple[int, Chain]:
    """Linear maps, then one layer of pointwise functions, gates or forks, then linear maps."""
    inputs, below = draw(networks(DEEP_LINEAR, depth=1))
    act = st.sampled_from(tuple(ACTIVATIONS)).map(Act)
    width = draw(SMALL_WIDTHS)
    branches = [(draw(_linears(width)), draw(act)) for _ in range(draw(st.integers(2, 3)))]
    single: Chain = (draw(act),)
    gates = [(Fork(join, tuple(branches)),) for join in ANY.joins]
    # Read by several pointwise functions and nothing else, so composed into each of them.
    shared = [(*single, Fork(join, ((draw(act),), (draw(act),)))) for join in ANY.joins]
    middle = draw(st.sampled_from((single, *gates, *shared)))
    chain = (*below, *middle)
    above = draw(blocks(width_after(chain, inputs), DEEP_LINEAR, nesting=1))
    above = () if _slices(above) and _joined(chain) else above
    return inputs, (*chain, *above, draw(_linears(draw(SMALL_WIDTHS))))
