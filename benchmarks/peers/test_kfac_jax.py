"""kfac-jax is given the network and the loss of the task, and its weights come back."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

from gncompile.app.api import understand
from gncompile.app.comparison.jax_kfac import JaxKfacSteps, jax_loss, jax_network
from gncompile.app.comparison.task import Task
from gncompile.data import DataSplit

jax = pytest.importorskip("jax")
pytest.importorskip("kfac_jax")

LOSSES = {
    "mse": lambda z, y: 0.5 * (z - y).square().sum(1).mean(),
    "bce_with_logits": lambda z, y: (
        nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1).mean()
    ),
    "cross_entropy": nn.functional.cross_entropy,
}


class Branched(nn.Module):
    """A skip connection, a gate, a concatenation and four transfer functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(4, 6), nn.Linear(4, 6, bias=False)
        self.last = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x)) * torch.sigmoid(self.gate(x))
        h = torch.relu(h) + nn.functional.softplus(h)
        return self.last(torch.cat([h, x], dim=1))


def task(loss: str) -> Task:
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = x[:, :3].argmax(1) if loss == "cross_entropy" else torch.sigmoid(3 * x[:, :3])
    return Task(loss, lambda seed: Branched(), loss, LOSSES[loss], DataSplit(x, y, x, y, (4,)), 32)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_are_those_of_torch(loss: str) -> None:
    given, model = task(loss), Branched()
    x, y = given.data.train_x, given.data.train_y
    traced, _, _ = understand(model, loss, x[:2])
    network, objective = jax_network(traced.graph, {}), jax_loss(loss)
    weights = {n: jax.numpy.array(p.detach().numpy().T) for n, p in model.named_parameters()}
    x_, y_ = (jax.numpy.array(t.numpy()) for t in (x, y))
    value, gradient = jax.value_and_grad(lambda w: objective(network(w, x_), y_))(weights)
    wanted = given.objective(model(x), y)
    wanted.backward()
    # float32, sums of 64 samples
    assert float(value) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        got = from_dlpack(gradient[name].T)
        torch.testing.assert_close(got, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_it_starts_from_the_weights_and_writes_them_back(loss: str) -> None:
    given = task(loss)
    model = given.build(0)
    before = given.losses(model)[0]
    steps = JaxKfacSteps(given, model, 0, damping=1.0)
    x, y = given.data.train_x, given.data.train_y
    steps.settle(x, y)
    assert given.losses(model)[0] == before  # the steps of the compilation are forgotten
    stream = steps.batches([(x[:32], y[:32]), (x[32:], y[32:])])
    for _ in range(20):
        steps.step(*next(stream), 0.0)
    steps.settle(x, y)
    assert given.losses(model)[0] < 0.9 * before
