"""Functions of tensors as losses: value and derivatives those of the function, or a refusal that says why."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from loss_programs import check_against
from torch import Tensor, nn
from torch.nn import functional as F

from gncompile.errors import LossError
from gncompile.losses import resolve_loss
from gncompile.losses.weighting import bind_loss

generator = torch.Generator().manual_seed(0)
Z = torch.randn(4, 3, generator=generator, dtype=torch.float64)
Y = torch.rand(4, 3, generator=generator, dtype=torch.float64)


def pinball(z: Tensor, y: Tensor) -> Tensor:
    d = z - y
    return torch.where(d < 0, 3 * d**2, 0.5 * d**2).mean()


def logistic(z: Tensor, y: Tensor) -> Tensor:
    return (F.softplus(z) - y * z).sum() + 0.1 * z.pow(2).sum() / 2


LIFTED: list[Callable[..., Tensor]] = [
    F.mse_loss,
    partial(F.huber_loss, delta=0.3),
    partial(F.smooth_l1_loss, beta=0.5, reduction="sum"),
    F.binary_cross_entropy_with_logits,
    partial(F.poisson_nll_loss, full=True),
    lambda z, y: ((z - y) ** 2).mean(),
    lambda z, y: (z.exp() - y * z).mean() * 2,
    lambda z, y: torch.log(torch.cosh(z - y)).sum(),
    lambda z, y: torch.sqrt(1 + (z - y) ** 2).mean(),
    lambda z, y: F.mse_loss(z, y.float()) + 0.01 * torch.square(z).mean(),
    lambda z, y: F.huber_loss(2 * z, y, reduction="none").mean(),
    lambda z, y: (1 - y * z).relu().pow(2).mean(),
    pinball,
    logistic,
]


@pytest.mark.parametrize("function", LIFTED, ids=range(len(LIFTED)))
def test_a_function_is_what_it_computes(function: Callable[..., Tensor]) -> None:
    y = Y.float().double()
    loss = bind_loss(resolve_loss(function), (3,))
    check_against(loss, lambda z: function(z, y), Z, y)


def test_cross_entropy_as_a_function() -> None:
    y = torch.tensor([0, 2, 1, -1])
    function = partial(F.cross_entropy, ignore_index=-1, label_smoothing=0.2)
    check_against(bind_loss(resolve_loss(function), (3,)), lambda z: function(z, y), Z, y)


counted = iter(range(100))


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda z, y: (z - y) ** 2, r"returns one number an element, not a number"),
        (lambda z, y: ((z - y) ** 2).sum(dim=1).mean(), r"takes the sum over some dimensions only"),
        (lambda z, y: (z.mean() - y.mean()) ** 2, r"raises TypeError|combines|uses"),
        (lambda z, y: ((z - z.mean()) ** 2).mean(), r"combines elements with a Total"),
        (lambda z, y: ((z - y) ** 2).mean() + 1, r"adds something else to a mean"),
        (lambda z, y: (z @ y).sum(), r"raises TypeError"),
        (lambda z, y: torch.cumsum(z, 0).sum(), r"calls cumsum|combines"),
        (lambda z, y: z.mean() if z > 0 else y.mean(), r"asks for the truth of a tensor"),
        (lambda z, y: ((z - y) ** 2).mean() * (1 + next(counted)), r"of tensors, and .* by symbols"),
        (lambda z, y: (z - y).abs().mean(), r"zero curvature everywhere"),
        (lambda z, y: -((z - y) ** 2).mean(), r"is not convex in the output z"),
        (F.l1_loss, r"nn.L1Loss is not a supported loss\n.*\n.*zero output Hessian"),
        (F.kl_div, r"nn.KLDivLoss is not a supported loss"),
        (partial(F.mse_loss, size=3), r"the function mse_loss .*size"),
        (nn.MSELoss, r"the class nn.MSELoss is not a supported loss\n.*\n.*an instance is needed: nn"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_refused(function: Any, text: str) -> None:
    with pytest.raises(LossError, match=text) as refusal:
        resolve_loss(function)
    assert "what to do" in str(refusal.value)
