"""Small networks trained by the Triton backend, in its interpreter, and by the reference backend."""

from __future__ import annotations

from typing import Any

import torch
from architectures import Act, Chain, Fork, Linear, Scale, Slice, build, calibrate, normal
from torch import Tensor, nn

import gncompile
from gncompile.losses import define_loss
from gncompile.runtime.draws import PhiloxDraws
from gncompile.training.trainer import Trainer

TANH = Act("tanh")
NETWORKS: dict[str, Chain] = {
    "chain": (Linear(17), TANH, Linear(33, bias=False), Act("silu"), Linear(3)),
    "residual": (Linear(5), TANH, Fork("sum", ((), (Linear(5), TANH))), Linear(3)),
    "gated": (Fork("product", ((Linear(5), TANH), (Linear(5), Act("sigmoid")))), Linear(3)),
    "joined": (
        Fork("cat", ((Linear(4), TANH), (Linear(1), Act("sin"), Scale()), (Slice(0, 2, 1),))),
        Linear(3),
    ),
    "narrow": (Linear(1), Act("softplus"), Linear(3)),
}
INPUTS = 6
SEED = 5
EXPRESSIONS = {
    "distance": "sqrt(1 + (z1 - y1)**2 + (z2 - y2)**2 + (z3 - y3)**2) + exp(z1 - 2*z2)/9",
    "log_sum": "logsumexp(z1, z2, z3) - y1*z1 - y2*z2 - y3*z3 + (z1**2 + z2**2 + z3**2)/9",
}
OPTIONS = {
    "l2": {"*weight": 1e-2, "*": 1e-3},
    "average": 0.9,
    "layer_steps": 1,
    "damping_period": 2,
    "factor_share": 0.5,
    "factor_samples": 2,
    "quadratic_share": 0.5,
    "quadratic_samples": 2,
}
"""Two steps go through both quadratic models and check the damping."""
CHOICE = {"factor_damping_period": 3, "refresh_always": 1, "refresh_every": 2}
"""The third step chooses γ, the second keeps its inverses."""
QUICK = {"layer_steps": 0, "momentum": False, "damping_period": 20}
"""Little besides gradient, factors, inverses and direction."""


def target(loss: str, count: int, generator: torch.Generator) -> Tensor:
    z = normal(generator, count, 3)
    if loss == "index":
        return z.argmax(dim=1)
    if loss == "soft":
        return torch.softmax(z, dim=1)
    return torch.sigmoid(z) if loss == "bce_with_logits" else z


def declared(loss: str) -> Any:
    if loss in EXPRESSIONS:
        return define_loss(loss, EXPRESSIONS[loss])
    return {"index": "cross_entropy", "soft": nn.CrossEntropyLoss()}.get(loss, loss)


def trainer(
    network: str, loss: str, method: str, backend: str, dtype: torch.dtype, **options: Any
) -> Trainer:
    generator = torch.Generator().manual_seed(3)
    model = build(NETWORKS[network], INPUTS, generator)
    calibrate(model, normal(generator, 64, INPUTS))
    example = torch.zeros(2, INPUTS, dtype=dtype)
    compiled = gncompile.compile(
        model.to(dtype), declared(loss), example, method, backend=backend, seed=SEED, **options
    )
    if backend == "reference":
        # The numbers that the kernels are to draw.
        compiled._executable.memory.draws = PhiloxDraws(SEED, example.device)
    return compiled


def trained(one: Trainer, loss: str, sizes: tuple[int, ...]) -> dict[str, Tensor]:
    """Parameters and states after a step on a batch of each size, and a measurement of noise."""
    generator = torch.Generator().manual_seed(4)
    for count in sizes:
        x, y = normal(generator, count, INPUTS), target(loss, count, generator)
        one.step(x.to(one.dtype), y.to(one.dtype) if y.is_floating_point() else y)
    if one.settings.gather_noise is not None:  # Measured here, as it is due after more steps only.
        one._executable.run("gradient", "direction", "gradient_noise")
    state = one.state_dict()
    return {**state["model"], **state["states"]}
