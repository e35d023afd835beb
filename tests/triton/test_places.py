"""Weights at many places in Triton's interpreter: whole steps as the reference backend takes them.

And of every program: launches planned over real memory, where an operand that strides do not reach raises.
"""

from __future__ import annotations

import warnings

import pytest
import torch
from places import NETWORKS, network
from small_programs import triton_texts
from torch import Tensor
from triton_steps import NETWORKS as CHAINS
from triton_steps import SEED, trainer

import gncompile
from gncompile.runtime.draws import PhiloxDraws
from gncompile.runtime.memory import Memory
from gncompile.runtime.source_files import load_source
from gncompile.training.trainer import Trainer


def compiled(
    name: str, method: str, backend: str, **options: object
) -> tuple[Trainer, Tensor, Tensor]:
    model, x, y = network(name, 9)
    x, y = (z.double() if z.is_floating_point() else z for z in (x, y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # KFRA hands over to columns, and says so
        one = gncompile.compile(
            model.double(), "bce_with_logits", x, method,
            backend=backend, seed=SEED, guarded=True, **options,
        )  # fmt: skip
    if backend == "reference":  # the numbers that the kernels draw
        one._executable.memory.draws = PhiloxDraws(SEED, x.device)
    return one, x, y


def trained(one: Trainer, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    for count in (9, 5):
        one.step(x[:count], y[:count])
    state = one.state_dict()
    return {**state["model"], **state["states"]}


@pytest.mark.filterwarnings("ignore:.*few samples")
@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("convolutions", "kfra"),
        ("convolutions", "auto"),
        ("norms", "kfra"),
        ("block", "auto"),
        ("computed", "auto"),
    ],
)
def test_steps_agree_with_the_reference(name: str, method: str) -> None:
    """Sums are taken in another order, 1e-16 apart; inverses and normalised places lose digits of that."""
    got, expected = (
        trained(*compiled(name, method, backend)) for backend in ("triton", "reference")
    )
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        error = (got[key].double() - value.double()).abs().max() / value.abs().max().clamp(min=1e-6)
        assert float(error) <= 1e-10, f"{key}: {float(error):.1e}"


PROGRAMS = [
    *((name, method) for name in NETWORKS for method in ("kfra", "kflr")),
    *((name, "kfra") for name in CHAINS),
]


@pytest.mark.parametrize(("name", "method"), PROGRAMS)
def test_every_launch_can_be_planned(name: str, method: str) -> None:
    """At sizes of which none is another's, or 1, so that nothing joins by chance, and every operand is a view
    of memory that the step owns: a copy would be read as it was when the launch was planned."""
    if name in NETWORKS:
        one, _, _ = compiled(name, method, "reference")
    else:
        one = trainer(name, "mse", method, "reference", torch.float64)
    executable = one._executable
    kernels, step = (
        load_source(text, f"{name}_{n}")[0] for n, text in enumerate(triton_texts(one.program))
    )
    memory = Memory(
        one.program, executable.memory.parameters, executable.memory.constants,
        torch.float64, torch.device("cpu"), PhiloxDraws(0, torch.device("cpu")),
    )  # fmt: skip
    step.bind(memory, kernels, 13, 11, 7, 5, 2)
