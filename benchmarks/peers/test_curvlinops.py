"""Factors of convolutions and shared layers (*expand*) against curvlinops 3.0.1, type-2.

Which factor is divided by samples and places is a convention of each; the product ``Ḡ ⊗ Q`` is
compared, layer by layer, in the order of torch's row-major weight.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from curvlinops import KFACLinearOperator
from torch import Tensor, nn

import gncompile
from benchmarks.compare import relative_error

# Both sides round a few hundred operations in float64, near 1e-14; a wrong factor shows at 1e-2.
EXACT = 1e-9


class Tokens(nn.Module):
    """A layer at every place of a sequence, whose outputs are averaged."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.shared(x)).mean(dim=1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 2, 2, dilation=2, bias=False),
            nn.Sigmoid(), nn.Flatten(), nn.Linear(8, 2),
        ),
        (2, 8, 7),
    ),
    "tokens": (Tokens, (5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.CrossEntropyLoss()])
@pytest.mark.parametrize("name", NETWORKS)
def test_products_of_factors(name: str, loss: nn.Module) -> None:
    made, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = made().double()
    x = torch.randn(6, *shape, dtype=torch.float64)
    y = torch.randn_like(model(x)) if isinstance(loss, nn.MSELoss) else torch.randint(2, (6,))
    ours = gncompile.curvature(model, loss, x, y, method="kflr")
    parameters = dict(model.named_parameters())
    theirs = KFACLinearOperator(
        model, loss, list(parameters.values()), [(x, y)], fisher_type="type-2", kfac_approx="expand",
        separate_weight_and_bias=False, check_deterministic=False,
    )  # fmt: skip
    whole = theirs @ torch.eye(theirs.shape[1], dtype=torch.float64)
    starts = dict(zip(parameters, offsets(parameters), strict=True))
    for layer, factors in ours.items():
        rows, columns = len(factors.output), len(factors.input)
        bias = f"{layer}.bias" in parameters
        weight = torch.arange(rows * (columns - bias)) + starts[f"{layer}.weight"]
        index = weight.reshape(rows, -1)
        if bias:
            last = torch.arange(rows)[:, None] + starts[f"{layer}.bias"]
            index = torch.cat([index, last], dim=1)
        block = whole[index.flatten()][:, index.flatten()]
        assert relative_error(factors.dense(), block) <= EXACT, layer


def offsets(parameters: dict[str, nn.Parameter]) -> list[int]:
    """Where each parameter begins in the vector of all."""
    sizes = torch.tensor([0, *(p.numel() for p in parameters.values())])
    return [int(start) for start in sizes.cumsum(0)[:-1]]
