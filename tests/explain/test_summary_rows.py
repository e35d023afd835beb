"""Every trained parameter of a network has a row in its summary."""

from __future__ import annotations

import random

import hypothesis
import pytest
import torch
from architectures import ANY, build, networks
from mixed_networks import mixed_network
from torch import Tensor, nn

import gncompile


def assert_rows(model: nn.Module, x: Tensor) -> None:
    trainer = gncompile.compile(model, "mse", x, tune="off")
    text = trainer.summary(width=300)
    first = {line.split()[0] for line in text.splitlines() if line}
    layers = trainer.compiled.traced.graph.trained
    shown = [p for name, layer in layers.items() if name in first for p in layer.parameters]
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(shown) == sorted(trained), f"{model}\n{text}"
    assert f"{sum(trained.values()):,} trained parameters" in text


@pytest.mark.parametrize("seed", range(8))
def test_networks_of_every_kind_of_node(seed: int) -> None:
    torch.manual_seed(0)
    draw = random.Random(seed)
    mixed = mixed_network(draw, draw.randint(2, 4), 2, every=seed % 2 == 1)
    assert_rows(mixed.model, mixed.inputs(3, torch.Generator().manual_seed(seed)))


@hypothesis.given(networks(ANY))
@hypothesis.settings(max_examples=4)
def test_networks_of_features(network) -> None:
    width, chain = network
    model = build(chain, width, torch.Generator().manual_seed(0))
    assert_rows(model, torch.randn(3, width, dtype=torch.float64))
