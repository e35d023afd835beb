"""The output bias at the best constant prediction: its formula, by minimisation; what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gncompile.app.output_bias import set_output_bias
from gncompile.errors import ModelFileError
from gncompile.frontends.model_file import ModelFile, load_model_file

FILE = """
[model]
name = "small"
[data]
name = "curves"
[network]
layers = [4, 5, 3]
output = "{output}"
[loss]
{loss}
[training]
updates = 1
output_bias = "mean"
"""


def file(path: Path, loss: str = 'name = "mse"', output: str = "identity") -> ModelFile:
    path = path / "model.toml"
    path.write_text(FILE.format(loss=loss, output=output))
    return load_model_file(path)


def smoothed(targets: Tensor) -> Tensor:
    """Half an observation of each kind added."""
    return torch.cat([targets, torch.full((1, targets.shape[1]), 0.5)])


@pytest.mark.parametrize("name", ["mse", "bce_with_logits", "cross_entropy"])
def test_the_constant_has_the_lowest_loss(name: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(200, 3, generator=generator, dtype=torch.float64)
    y[:, 0] = 0.0  # a pixel that is never on
    labels = torch.randint(2, (200,), generator=generator)
    given = {"mse": y, "bce_with_logits": y, "cross_entropy": labels}[name]
    described = file(tmp_path, f'name = "{name}"')
    model = described.build().double()
    weights = model.get_submodule("layer2").weight.clone()
    set_output_bias(described, model, given)
    assert torch.equal(model.get_submodule("layer2").weight, weights)

    z = model.get_submodule("layer2").bias.detach().clone().requires_grad_()
    assert torch.isfinite(z).all()
    if name == "mse":
        loss = F.mse_loss(z.expand(200, 3), y)
    elif name == "bce_with_logits":
        loss = F.binary_cross_entropy_with_logits(z.expand(201, 3), smoothed(y))
    else:
        counts = torch.bincount(labels, minlength=3) + 0.5
        loss = -(counts * z.log_softmax(0)).sum() / counts.sum()
    (slope,) = torch.autograd.grad(loss, z)
    assert slope.abs().max() < 1e-9


def test_the_network_starts_at_the_mean_loss(tmp_path: Path) -> None:
    y = torch.rand(50, 3, generator=torch.Generator().manual_seed(1))
    described = file(tmp_path)
    model = described.build()
    set_output_bias(described, model, y)
    # All biases but the last are zero, so a zero input shows the constant.
    assert torch.allclose(model(torch.zeros(1, 4)), y.mean(dim=0, keepdim=True))


@pytest.mark.parametrize(
    ("loss", "output", "found"),
    [
        ('name = "huber"', "identity", "is not known for the loss 'huber'"),
        ('expression = "exp(z) - y*z"', "identity", "is not known for the loss 'exp(z) - y*z'"),
        ('name = "mse"', "tanh", "needs a linear output with a bias"),
    ],
)
def test_what_is_refused(loss: str, output: str, found: str, tmp_path: Path) -> None:
    described = file(tmp_path, loss, output)
    with pytest.raises(ModelFileError) as caught:
        set_output_bias(described, described.build(), torch.zeros(2, 3))
    assert found in str(caught.value)
    assert str(described.path) in str(caught.value)
