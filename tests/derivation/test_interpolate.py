"""Networks that read a grid at places which they compute, against autograd of torch's grid_sample."""

from __future__ import annotations

from collections.abc import Callable

import oracles
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, assert_outputs, assert_tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gncompile
from gncompile.errors import TraceError
from gncompile.frontends import trace
from gncompile.graph.interpolate import Interpolate

N = 6


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


class Reads(nn.Module):
    """A layer gives P places of an image ``[C, H, W]``; what is read there passes a layer."""

    image: Tensor

    def __init__(
        self,
        mode: str = "bicubic",
        padding: str = "border",
        corners: bool = True,
        channels: int = 2,
        places: int = 2,
        seed: int = 0,
        rank: int = 2,
    ) -> None:
        super().__init__()
        self.mode, self.padding, self.corners, self.rank = mode, padding, corners, rank
        self.register_buffer("image", normal(seed, channels, *(5, 4, 3)[:rank]))
        self.up = nn.Linear(3, rank * places)
        self.down = nn.Linear(channels * places, 2)
        for i, p in enumerate(self.double().parameters()):
            p.data = normal(seed + i + 1, *p.shape) / 2

    def read(self, at: Tensor) -> Tensor:
        """``[N, C, P]`` at places ``[N, P, d]``."""
        shaped = at.unflatten(1, (*[1] * (self.rank - 1), -1))
        images = self.image.expand(at.shape[0], *self.image.shape)
        return F.grid_sample(
            images, shaped, mode=self.mode, padding_mode=self.padding, align_corners=self.corners
        )

    def forward(self, x: Tensor) -> Tensor:
        at = torch.tanh(self.up(x)).unflatten(1, (-1, self.rank)) * 1.3
        z: Tensor = self.down(self.read(at).flatten(1))
        return z


class ReadsPlainly(Reads):
    """The same by :func:`gncompile.interpolate`, whose coordinates follow the grid's dimensions."""

    def read(self, at: Tensor) -> Tensor:
        mode, box = {"bilinear": "linear", "bicubic": "cubic"}[self.mode], [(-1.0, 1.0)] * self.rank
        return gncompile.interpolate(
            self.image, at.flip(-1), mode=mode, padding=self.padding, box=box  # type: ignore[arg-type]
        )  # fmt: skip


def data(seed: int = 0, n: int = N) -> tuple[Tensor, Tensor]:
    return normal(seed, n, 3), normal(seed + 1, n, 2)


def check(model: nn.Module, method: str, backend: str = "torch", n: int = N) -> None:
    """Gradient, R-operator and the output factors of a network."""
    x, y = data(n=n)
    trainer = gncompile.compile(model, "mse", x, method, backend=backend)
    assert_tensors(trainer.gradients(x, y), oracles.gradient(model, "mse", x, y), what="gradient")
    along = {name: torch.ones_like(p) / 3 for name, p in oracles.parameters(model).items()}
    factors = gncompile.curvature(model, "mse", x, y, method=method, backend=backend)
    assert_outputs(factors, oracles.ggn(model, "mse", x, y))
    exact = trainer.rop(x, along)
    # torch's grid_sample has no forward-mode derivative: the directional one by differences of autograd's
    assert_close(exact, rop_by_rows(model, x, along), what="r_z")


def rop_by_rows(model: nn.Module, x: Tensor, along: dict[str, Tensor]) -> Tensor:
    """``Σ_θ ∂z/∂θ v`` with a reverse pass for each output of each sample."""
    names, values = zip(*model.named_parameters(), strict=True)
    z = model(x)
    rows = [
        sum(
            (g * along[name]).sum()
            for name, g in zip(
                names, torch.autograd.grad(e, values, retain_graph=True), strict=True
            )
        )
        for e in z.flatten()
    ]
    return torch.stack(rows).reshape(z.shape).detach()  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "mode"), [(Reads, "bilinear"), (ReadsPlainly, "bicubic")])
def test_gradient_tangent_and_columns(kind: type[Reads], mode: str, backend: str) -> None:
    check(kind(mode), "kflr", backend)


@pytest.mark.parametrize(("mode", "padding"), [("bilinear", "zeros"), ("bicubic", "reflection")])
def test_kfra_is_exact_for_one_sample(mode: str, padding: str) -> None:
    check(Reads(mode, padding), "kfra", n=1)


@given(
    mode=st.sampled_from(["bilinear", "bicubic"]),
    padding=st.sampled_from(["zeros", "border", "reflection"]),
    corners=st.booleans(),
    channels=st.integers(1, 3),
    places=st.integers(1, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=2)
def test_networks_of_any_kind(
    mode: str, padding: str, corners: bool, channels: int, places: int, seed: int
) -> None:
    check(Reads(mode, padding, corners, channels, places, seed), "kflr")


def test_volumes_and_lines() -> None:
    x, y = data()
    for model in (Reads("bilinear", rank=3), *(ReadsPlainly("bicubic", rank=r) for r in (1, 3))):
        found = gncompile.compile(model, "mse", x, "adam").gradients(x, y)
        assert_tensors(found, oracles.gradient(model, "mse", x, y), what="gradient")


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_the_hessian(mode: str) -> None:
    """Against the plain function's second derivatives: torch's grid_sample has none."""
    model, (x, y) = ReadsPlainly(mode), data()
    exact = oracles.per_sample_hessian(model, "mse", x, y)
    found = gncompile.curvature(model, "mse", x, y, method="hessian")
    assert_outputs(found, {name: H.mean(dim=0) for name, H in exact.items()})


def test_kfra_of_a_batch_averages_at_the_node() -> None:
    """``Ḡ = (w² E[s sᵀ]) ⊙ E[t tᵀ]`` with s the slopes of the image, and t those of what gives the places."""
    model, (x, y) = Reads(channels=1, places=1), data()
    tanh = torch.tanh(model.up(x)).detach()
    at = (1.3 * tanh).requires_grad_()
    (s,) = torch.autograd.grad(model.read(at[:, None]).sum(), at)
    t = 1.3 * (1 - tanh**2)
    above = model.down.weight.detach().square().sum()
    expected = above * (s.T @ s / N) * (t.T @ t / N)
    factors = gncompile.curvature(model, "mse", x, y, method="kfra")
    assert_close(factors["up"].output, expected, what="up")


def test_a_step_lowers_the_loss_with_shares_of_the_batch() -> None:
    """Factors and quadratic model on a part of the samples see views of the slopes."""
    model, (x, y) = Reads(), data(n=40)
    trainer = gncompile.compile(model, "mse", x, "kfra", factor_share=0.5, quadratic_share=0.5)
    losses = [trainer.step(x, y).loss for _ in range(15)]
    assert losses[-1] < losses[0] / 2


# --- the graph ----------------------------------------------------------------------------------------


class OfActivations(Reads):
    """Two small images, computed, at places that are constant: a linear map."""

    def forward(self, x: Tensor) -> Tensor:
        images = self.up(x).reshape(-1, 1, 2, 2)
        at = self.image[..., :2].tanh().reshape(1, -1, 1, 2)
        y = F.grid_sample(images, at.expand(x.shape[0], -1, -1, -1), align_corners=False)
        z: Tensor = self.down(y.flatten(1)[:, : self.down.in_features])
        return z


def test_an_image_of_activations_is_read_at_constant_places() -> None:
    model, (x, y) = OfActivations(), data()
    assert not any(isinstance(node.op, Interpolate) for node in trace(model, x).graph)
    found = gncompile.compile(model, "mse", x, "adam").gradients(x, y)
    assert_tensors(found, oracles.gradient(model, "mse", x, y), what="gradient")


def test_the_node_says_what_it_reads() -> None:
    graph = trace(Reads("bilinear", "zeros"), torch.zeros(2, 3).double()).graph
    (node,) = [node for node in graph if isinstance(node.op, Interpolate)]
    assert "interpolate[image_expand: linear on 5 × 4, zeros](" in str(graph)
    assert node.op.curved == ((0, 1), (1, 0))  # bilinear: in two different axes only
    slope = node.op.slope(0)
    assert slope is not None
    assert slope.of.order == (1, 0)
    assert slope.slope(0) is None


class Wrong(nn.Module):
    """An image and places, and what reads the one at the other."""

    def __init__(self, read: Callable[[Wrong, Tensor], Tensor]) -> None:
        super().__init__()
        self.read, self.up = read, nn.Linear(3, 2)
        self.register_buffer("buffer", torch.zeros(1, 4, 4))
        self.trained = nn.Parameter(torch.zeros(1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self, x).flatten(1) + self.trained.flatten()[:1]


def sampled(image: Tensor, m: Wrong, x: Tensor, mode: str = "bilinear") -> Tensor:
    return F.grid_sample(image, m.up(x)[:, None, None], mode=mode, align_corners=True)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda m, x: sampled(m.trained.expand(x.shape[0], 1, 4, 4), m, x), "it is trained"),
        (lambda m, x: gncompile.interpolate(m.trained, m.up(x)), "keep it as a buffer; the places"),
        (lambda m, x: sampled(m.up(x).repeat(1, 8).reshape(-1, 1, 4, 4), m, x), "or differs between"),
        (lambda m, x: sampled(m.buffer.expand(x.shape[0], 1, 4, 4), m, x, "nearest"),
         "grid_sample of mode 'nearest'(.|\n)*use mode='bilinear' or 'bicubic'"),
        (lambda m, x: sampled(m.buffer.expand(x.shape[0], 1, 4, 4).exp(), m, x), None),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_with_its_place(
    read: Callable[[Wrong, Tensor], Tensor], message: str | None
) -> None:
    model = Wrong(read)
    if message is None:
        trace(model, torch.zeros(2, 3))
        return
    with pytest.raises(TraceError, match=message) as caught:
        trace(model, torch.zeros(2, 3))
    assert "test_interpolate.py" in str(caught.value)
