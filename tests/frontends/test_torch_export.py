"""The PyTorch frontend: traced graphs compute what the module computes, under stable and legible names."""

from __future__ import annotations

import copy
import doctest
import operator
from collections.abc import Callable

import pytest
import sympy
import torch
from comparison import assert_close
from graph_values import evaluate, operations
from torch import Tensor, nn
from torch.nn import functional

from gncompile.frontends import torch_export, trace
from gncompile.graph.fuse_pointwise import fuse_pointwise
from gncompile.graph.layers import Affine
from gncompile.graph.model_graph import TracedModel
from gncompile.graph.nodes import FixedLinear, Pointwise, Select


class Function(nn.Module):
    """A function of the features as a module without parameters."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def agree(module: nn.Module, *shapes: tuple[int, ...], batch: int = 4) -> TracedModel:
    """Trace in float64 on a batch of two, compare on a random batch before and after fusion."""
    module = module.double()
    model = trace(module, tuple(torch.randn(2, *shape, dtype=torch.float64) for shape in shapes))
    model.graph.check()
    fused = fuse_pointwise(model.graph)
    fused.check()
    inputs = [3 * torch.randn(batch, *shape, dtype=torch.float64) for shape in shapes]
    with torch.no_grad():
        expected = module(*[x.clone() for x in inputs])
    assert_close(evaluate(model, *inputs), expected, 1e-12)
    assert_close(evaluate(model.with_graph(fused), *inputs), expected, 1e-12)
    return model


# chains and graphs


def test_sequential_prints_as_layers() -> None:
    model = agree(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2, bias=False)), (3,))
    assert model.graph.to_text().splitlines() == [
        "x            = input 0                              : [3]",
        "layer_0      = affine[0](x)                         : [2] 0",
        "layer_1_tanh = tanh(layer_0)                        : [2] 1",
        "layer_2      = affine[2](layer_1_tanh) without bias : [2] 2",
        "output       = output(layer_2)                      : [2]",
    ]
    assert list(model.graph.layers) == ["0", "2"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.encoder(x)
        return self.head(torch.tanh(h) + h)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.head = nn.Linear(3, 5), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 3)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.gelu(self.stem(x))
        return self.head(torch.cat([self.left(h), torch.sin(self.right(h))], dim=1))


class Functional(nn.Module):
    """Own parameters: F.linear with and without bias, ``x @ W.t() + b``, addmm."""

    def __init__(self) -> None:
        super().__init__()
        self.W1, self.W2 = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5, 5))
        self.W3, self.W4 = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(2, 4))
        self.b2, self.b3 = nn.Parameter(torch.randn(5)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(functional.linear(x, self.W1))
        h = h @ self.W2.t() + self.b2
        h = torch.addmm(self.b3, h.tanh_(), self.W3.T)
        return torch.matmul(h.add_(1.0).mul_(0.5), self.W4.transpose(0, 1))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.a(left) * self.b(right.flatten(1))


def test_residual() -> None:
    model = agree(Residual(), (4,))
    assert list(model.graph.layers) == ["encoder.0", "encoder.2", "head"]
    assert "encoder_1_relu" in model.graph


def test_gate_fuses_into_one_node() -> None:
    model = agree(Gated(), (3,))
    fused = fuse_pointwise(model.graph)
    assert operations(fused) == ["Affine", "Affine", "Pointwise", "Affine"]
    (gate,) = (node.op for node in fused if isinstance(node.op, Pointwise))
    assert {str(symbol) for symbol in gate.arguments} == {"value", "gate"}


def test_fork_and_concatenation() -> None:
    agree(Forked(), (3,))


def test_functional_code_names_layers_after_parameters() -> None:
    module = Functional()
    model = agree(module, (3,))
    assert list(model.graph.layers) == ["W1", "W2", "W3", "W4"]
    biases = [layer.bias for layer in model.graph.layers.values()]
    assert biases == [None, "b2", "b3", None]
    assert all(tensor is module.get_parameter(name) for name, tensor in model.parameters.items())


def test_two_inputs_keep_forwards_names() -> None:
    model = agree(TwoInputs(), (2,), (2, 3))
    assert [node.name for node in model.graph.inputs] == ["left", "right"]
    assert [node.shape for node in model.graph.inputs] == [(2,), (2, 3)]


def test_inputs_taken_as_star_arguments() -> None:
    module = nn.Module()
    module.fc = nn.Linear(2, 2)
    module.forward = lambda *xs: module.fc(xs[0]) + xs[1]  # type: ignore[method-assign]
    model = agree(module, (2,), (2,))
    assert [node.name for node in model.graph.inputs] == ["input_0", "input_1"]


def test_docstring_example() -> None:
    assert doctest.testmod(torch_export).attempted == 2
    assert doctest.testmod(torch_export).failed == 0


def test_layer_named_output() -> None:
    module = nn.Module()
    module.output = nn.Linear(2, 2)
    module.forward = lambda x: module.output(x)  # type: ignore[method-assign]
    model = agree(module, (2,))
    assert model.graph.output.name == "output_2"


# every elementwise operator

ACTIVATIONS = [
    nn.ReLU(),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.LeakyReLU(0.1, inplace=True),
    nn.ELU(1.3),
    nn.ELU(inplace=True),
    nn.SELU(),
    nn.CELU(0.7),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.SiLU(),
    nn.Mish(),
    nn.Softplus(),
    nn.Softplus(beta=2.0),
    nn.Softsign(),
    nn.Hardtanh(),
    nn.Hardtanh(-0.3, 2.5),
    nn.ReLU6(),
    nn.Hardswish(),
    nn.Hardsigmoid(),
    nn.Sigmoid(),
    nn.LogSigmoid(),
    nn.Tanh(),
    nn.Tanhshrink(),
    nn.Hardshrink(0.4),
    nn.Softshrink(0.3),
    nn.Threshold(0.2, -0.5),
    nn.RReLU().eval(),
    nn.PReLU().requires_grad_(False),
    nn.PReLU(4).requires_grad_(False),
    nn.GLU(),
    nn.Identity(),
    nn.Dropout(0.5).eval(),
    nn.AlphaDropout(0.5).eval(),
    nn.Dropout(0.0),
]


# softplus and mish: torch switches to the asymptote at 20, where log(1 + e^-20) = 2e-9 is dropped
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_activation(activation: nn.Module) -> None:
    agree(activation, (4,))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda x: torch.add(x, x, alpha=2) - torch.sub(1.5 * x, 2 * x, alpha=3) + 4,
    "rsub": lambda x: (1 - x) * torch.rsub(x, 3, alpha=2),
    "quotients": lambda x: x / 3 + 1 / (x * x + 1) + torch.reciprocal(x.square() + 2),
    "neg and abs": lambda x: -x.abs() + torch.sign(x),
    "powers": lambda x: x**2 + x**3 + (x * x) ** 0.5 + (x * x + 1) ** -1.5 + torch.pow(2.0, x),
    "roots": lambda x: torch.sqrt(x * x + 1) + torch.rsqrt(x * x + 2),
    "exponentials": lambda x: torch.exp(-x * x) + torch.expm1(x / 4) + torch.exp2(x / 4),
    "logarithms": lambda x: (x * x + 1).log() + torch.log1p(x * x) + torch.log2(x * x + 1),
    "log10": lambda x: torch.log10(x * x + 1),
    "circular": lambda x: torch.sin(x) + torch.cos(x) * torch.tan(x / 20) + torch.atan(x),
    "hyperbolic": lambda x: torch.sinh(x / 4) + torch.cosh(x / 4) + torch.asinh(x),
    "error function": lambda x: torch.erf(x) + torch.erfc(x),
    "extrema": lambda x: torch.maximum(x, x**2 - 1) + torch.minimum(x, 1 - x) + torch.max(x, -x),
    "clamp": lambda x: x.clamp(-1, 0.5) + x.clamp(min=0.1) + x.clamp(max=0.2) + x.clamp_min(0),
    "clamp between tensors": lambda x: torch.clamp(x, min=-x.abs(), max=x * x),
    "where >": lambda x: torch.where(x > 0.5, x, 2 * x),
    "where <": lambda x: torch.where(x < x * x, x, 1.0),
    "where <=": lambda x: torch.where(x <= 0, torch.zeros_like(x), x),
    "where >= and not": lambda x: torch.where(~(x >= 0.3), x, -x),
    "mask as number": lambda x: (x > 0) * x + (x < 0).to(x.dtype) * 2,
    "masked_fill": lambda x: x.masked_fill(x > 1, 3.0),
    "mask moved": lambda x: torch.where((x > 0).flip(1), x, 0.0),
    "masks combined": lambda x: torch.where((x > 0) & (x < 1) | ~(x > -1), x, 5.0),
    "addcmul and lerp": lambda x: torch.addcmul(x, x, x + 1, value=0.5) + torch.lerp(x, x * x, 0.3),
    "in place": lambda x: (2 * x).add_(1).mul_(x).relu_().clamp_(max=4),
    "decomposed by torch": lambda x: torch.logit(torch.sigmoid(x)),
    "scalar tensor": lambda x: x * torch.tensor(2.0, dtype=x.dtype) + x.new_ones(x.shape[0], 4),
    "same dtype": lambda x: x.to(torch.float64).double().contiguous().clone() * 2,
}


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_pointwise_function(function: Callable[[Tensor], Tensor]) -> None:
    agree(Function(function), (4,))


def test_numbers_stay_exact() -> None:
    model = trace(Function(lambda x: 0.1 * x + 3), torch.ones(2, 3))
    (op,) = (node.op for node in fuse_pointwise(model.graph) if isinstance(node.op, Pointwise))
    assert op.expression == sympy.Symbol("x", real=True) / 10 + 3


# moving features

MOVES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]] = {
    "views": ((2, 6), lambda x: x.reshape(-1, 12).view(x.shape[0], 3, 4).unflatten(1, (3, 1)) * 2),
    "squeeze": ((1, 6), lambda x: x.squeeze(1).unsqueeze(-1) + 1),
    "slice": ((3, 4), lambda x: x[:, 1:, ::2] * 2),
    "select and narrow": ((3, 4), lambda x: x[:, 1] + x.narrow(2, 0, 1)[:, :, 0].sum(1, True)),
    "permute": ((2, 3, 4), lambda x: x.permute(0, 3, 1, 2).flatten(1) + 1),
    "transpose": ((3, 4), lambda x: x.transpose(1, 2).mT.mT * 2),
    "split": ((6,), lambda x: operator.mul(*x.split(3, dim=1))),
    "chunk unused": ((6,), lambda x: x.chunk(3, dim=1)[2]),
    "unbind": ((3, 4), lambda x: torch.stack(x.unbind(1)[::-1], dim=1)),
    "cat": ((2, 3), lambda x: torch.cat([x, x.sin(), x[:, :1]], dim=1)),
    "cat constant": ((3,), lambda x: torch.cat([x, x.new_full((x.shape[0], 2), 7.0)], dim=-1)),
    "cat zeros": ((3,), lambda x: torch.cat([x, torch.zeros(x.shape[0], 2)], dim=-1) + 1),
    "flip": ((3, 4), lambda x: x.flip(1, 2) + 0),
    "roll": ((3, 4), lambda x: x.roll(2, dims=2).roll(-1, 1)),
    "pad": ((3, 4), lambda x: functional.pad(x, (1, 2, 0, 1), value=3.5)),
    "pad reflect": ((3, 4), lambda x: functional.pad(x, (1, 2), mode="reflect")),
    "expand": ((3, 1), lambda x: x.expand(-1, 3, 4) * x),
    "repeat": ((3,), lambda x: x.repeat(1, 2) + x.repeat_interleave(2, dim=1)),
    "index": ((5,), lambda x: x[:, [4, 0, 0]] + x[:, torch.tensor([1, 2, 3])]),
    "broadcast": ((3, 4), lambda x: x[:, :, :1] * x[:, :1] + x),
    "pixel shuffle": ((4, 2, 2), lambda x: functional.pixel_shuffle(x, 2)),
    "glu inside": ((2, 4, 3), lambda x: functional.glu(x, dim=2)),
}


@pytest.mark.parametrize(("shape", "function"), MOVES.values(), ids=MOVES.keys())
def test_moving_features(shape: tuple[int, ...], function: Callable[[Tensor], Tensor]) -> None:
    model = agree(Function(function), shape)
    assert "Affine" not in operations(model.graph)


def test_views_are_no_nodes() -> None:
    model = agree(Function(lambda x: x.view(-1, 2, 3).flatten(1).contiguous()[:, :]), (6,))
    assert operations(model.graph) == []


def test_select_indices() -> None:
    model = agree(Function(lambda x: functional.pad(x.flip(1), (0, 1), value=2.0)), (3,))
    (op,) = (node.op for node in model.graph if isinstance(node.op, Select))
    assert op == Select((2, 1, 0, -1), fill=2.0)  # two selections in a row are one


# fixed linear maps

LINEAR: dict[str, tuple[tuple[int, ...], nn.Module]] = {
    "avg_pool1d": ((2, 6), nn.AvgPool1d(2)),
    "avg_pool2d": ((2, 5, 4), nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False)),
    "adaptive": ((2, 5, 4), nn.AdaptiveAvgPool2d((2, 1))),
    "means": ((3, 4), Function(lambda x: x.mean((1, 2)).unsqueeze(1) + x.mean(-1))),
    "sums": ((3, 4), Function(lambda x: x.sum(1) / x.exp().sum(dim=(1, 2), keepdim=True)[:, 0])),
    "cumsum": ((4,), Function(lambda x: x.cumsum(1))),
    "triangle": ((3, 3), Function(lambda x: x.tril())),
}


@pytest.mark.parametrize(("shape", "module"), LINEAR.values(), ids=LINEAR.keys())
def test_fixed_linear(shape: tuple[int, ...], module: nn.Module) -> None:
    model = agree(module, shape)
    assert "FixedLinear" in operations(model.graph)


class Buffers(nn.Module):
    """Constant matrices: from the left, from the right, over positions, with a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mix", torch.randn(4, 3))
        self.register_buffer("left", torch.randn(2, 5))
        self.register_buffer("shift", torch.randn(3))
        self.register_buffer("scale", torch.tensor(1.5))
        self.fixed = nn.Linear(3, 2).requires_grad_(False)
        self.frozen = nn.Linear(4, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.matmul(self.left, x) @ self.mix
        h = self.fixed(h * self.scale.exp() + self.shift)
        return self.frozen(torch.einsum("nij,ij->nij", h, self.left[:, :2]).flatten(1))


def test_constant_matrices() -> None:
    model = agree(Buffers(), (5, 4))
    frozen = model.graph["frozen"].op
    assert isinstance(frozen, Affine)
    assert not frozen.trainable
    assert not frozen.homogeneous
    assert model.graph.layers == {}


def test_constant_matrix_is_shared_with_the_buffer() -> None:
    module = nn.Module()
    module.register_buffer("mix", torch.randn(3, 2))
    module.forward = lambda x: x @ module.mix  # type: ignore[method-assign]
    model = trace(module, torch.zeros(1, 3))
    (matrix,) = model.constants.values()
    assert [type(node.op) for node in model.graph][1] is FixedLinear
    assert list(model.constants) == ["mix"]
    assert matrix.data_ptr() == module.get_buffer("mix").data_ptr()


# constants of pointwise nodes


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(4), (4,)),
        (nn.BatchNorm1d(4, affine=False), (4, 3)),
        (nn.BatchNorm2d(2), (2, 3, 3)),
    ],
    ids=["features", "positions", "images"],
)
def test_batch_norm_in_evaluation_mode(norm: nn.Module, shape: tuple[int, ...]) -> None:
    norm(2 * torch.randn(9, *shape) + 1)  # gives the running statistics values to test with
    model = agree(norm.eval().requires_grad_(False), shape)
    assert operations(model.graph) == ["Pointwise"]
    assert "running_mean" in model.constants


def test_constants_share_the_users_storage() -> None:
    module = nn.Module()
    module.register_buffer("scale", torch.ones(3))
    module.forward = lambda x: x * module.scale  # type: ignore[method-assign]
    model = trace(module, torch.zeros(2, 3))
    module.get_buffer("scale").fill_(5)
    assert model.constants["scale"].tolist() == [5, 5, 5]


# trainable or not


def test_frozen_bias_stays_out_of_the_factors() -> None:
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    op = trace(nn.Sequential(module), torch.zeros(2, 3)).graph["layer_0"].op
    assert isinstance(op, Affine)
    assert op.trainable
    assert not op.homogeneous


# what the result does not depend on


def test_any_example_batch_gives_the_same_graph() -> None:
    module = Residual()
    graphs = [trace(module, torch.randn(n, 4)).graph for n in (1, 2, 7)]
    assert graphs[0] == graphs[1] == graphs[2]
    assert len({graph.to_text() for graph in graphs}) == 1


def test_non_contiguous_inputs() -> None:
    x = torch.randn(4, 6, 2)[..., 0]
    assert not x.is_contiguous()
    assert trace(Gated(), x[:, ::2]).graph == trace(Gated(), torch.randn(4, 3)).graph


def test_module_and_modes_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Dropout(0.1).eval())
    before = copy.deepcopy(module.state_dict())
    x = torch.randn(4, 3)
    kept = x.clone()
    with torch.no_grad():
        trace(module, x)
    assert torch.equal(x, kept)
    assert [m.training for m in module] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_registration_order_does_not_matter() -> None:
    class Reordered(Forked):
        def __init__(self) -> None:
            super().__init__()
            self._modules = dict(reversed(self._modules.items()))

    x = torch.randn(2, 3)
    assert trace(Reordered(), x).graph == trace(Forked(), x).graph


def test_origin_points_into_the_users_code() -> None:
    graph = trace(Residual(), torch.randn(2, 4)).graph
    origin = graph["tanh"].origin
    assert origin.location.startswith("test_torch_export.py:")
    assert origin.code == "return self.head(torch.tanh(h) + h)"
    assert graph["encoder_1_relu"].origin.module == "encoder.1"


def test_float32_and_name() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.Softplus())
    model = trace(module, torch.randn(1, 3), name="small")
    assert model.name == "small"
    assert trace(module, torch.randn(1, 3)).name == "Sequential"
    x = torch.randn(5, 3)
    assert_close(evaluate(model, x).float(), module(x), 1e-6)
