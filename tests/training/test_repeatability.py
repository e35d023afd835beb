"""Two trainings of one seed on one machine are bitwise the same on a CPU, in another process too."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import islice

import torch
from processes import elsewhere
from torch import nn

import gncompile
from gncompile.data import Batches

METHODS = ("kfra", "kfac")
UPDATES = 24
"""Past the first steps with a size for each layer, the first choice of γ, and refreshes that are not due."""

Trace = dict[str, list[str]]


def trained(method: str, seed: int = 0) -> Iterator[str]:
    """Reported losses, exactly, then hashes of parameters and states; a minibatch problem in float32."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(300, 90, generator=generator)
    y = (x[:, :40].abs() > 1).float()
    # Wider than the blocks of a symmetric product, and the batch larger than the share for the factors.
    model = nn.Sequential(nn.Linear(90, 270), nn.Tanh(), nn.Linear(270, 40))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 10)
    trainer = gncompile.compile(model, "bce_with_logits", x[:2], method, seed=seed)
    batches = Batches(x, y, 270, seed).forever()
    for _ in range(UPDATES):
        stats = trainer.step(*next(batches))
        yield float(stats.loss).hex()
    yield trainer.evaluate(x, y).hex()
    for tensor in (*model.parameters(), *trainer.state_dict()["states"].values()):
        yield hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def one_after_another() -> Trace:
    return {method: list(trained(method)) for method in METHODS}


def in_turns() -> Trace:
    """Both trainings step by step, with draws from torch's own generator and other work between them."""
    torch.manual_seed(1234)
    runs = {method: trained(method) for method in METHODS}
    found: Trace = {method: [] for method in METHODS}
    while runs:
        for method in list(runs):
            torch.randn(1 + len(found[method])) @ torch.ones(1 + len(found[method]))
            value = next(runs[method], None)
            if value is None:
                del runs[method]
            else:
                found[method].append(value)
    return found


def test_equal_seeds_give_equal_bits() -> None:
    first, turns = one_after_another(), elsewhere(in_turns)
    assert [len(values) for values in first.values()] == [len(v) for v in turns.values()]
    assert first == turns


def test_another_seed_gives_other_bits() -> None:
    """What the test above compares does depend on batches and draws."""
    first, other = (list(islice(trained("kfac", seed), 3)) for seed in (0, 1))
    assert not set(first) & set(other)
