"""Many processes give the losses and parameters of one on the joined batch, however it is split."""

from __future__ import annotations

import random
from functools import cache

import pytest
import torch
from joint_trainings import SAMPLES, STEPS, TRAININGS, Joint, Outcome, alone, together
from processes import run_on

TOLERANCE = 1e-10
"""Sums in another order differ by some roundings of float64, 2e-16, which a few steps and the inverses of
ill-conditioned factors (condition numbers up to 1e4 here) make larger."""


def _splits(size: int, seed: int) -> tuple[tuple[int, ...], ...]:
    """For every step how many samples each process has, some of them none."""
    generator = random.Random(seed)
    found = []
    for _ in range(STEPS):
        cuts = sorted(
            generator.choice((0, SAMPLES, generator.randint(0, SAMPLES))) for _ in range(size - 1)
        )
        found.append(tuple(b - a for a, b in zip((0, *cuts), (*cuts, SAMPLES), strict=True)))
    return tuple(found)


UNEVEN = ((20, 33),) * STEPS
GROUPS: dict[int, list[Joint]] = {
    2: [
        *(Joint(name, UNEVEN) for name in TRAININGS),
        Joint("kfra"), Joint("dropout"), Joint("kfra of wide layers", UNEVEN, "reference"),
    ],
    3: [
        *(Joint("kfra", _splits(3, seed)) for seed in range(3)),
        *(Joint(name, _splits(3, 6)) for name in ("kflr", "kfac", "dropout", "exact", "adam")),
        Joint("a weighted mean", _splits(3, 6)),
        Joint("kfra through norms"), Joint("kfra of wide layers"),
    ],
    4: [Joint("kfra"), Joint("kfra", _splits(4, 0)), Joint("two outputs", _splits(4, 1))],
}  # fmt: skip


@cache
def _group(size: int) -> dict[Joint, list[Outcome]] | AssertionError:
    try:
        found: dict[Joint, list[Outcome]] = run_on(size, together, GROUPS[size])
        return found
    except AssertionError as error:  # kept, so that a group that fails does so once
        return error


def _found(size: int) -> dict[Joint, list[Outcome]]:
    found = _group(size)
    if isinstance(found, AssertionError):
        raise found
    return found


@cache
def _alone(training: str) -> Outcome:
    return alone(training)


EVERY = [
    pytest.param(size, joint, id=f"{size}-{number}-{joint.training}".replace(" ", "_"))
    for size, joints in GROUPS.items()
    for number, joint in enumerate(joints)
]


@pytest.mark.parametrize(("size", "joint"), EVERY)
def test_many_processes_train_as_one(size: int, joint: Joint) -> None:
    wanted = _alone(joint.training)
    for found in _found(size)[joint]:
        assert found.losses == pytest.approx(wanted.losses, rel=TOLERANCE, abs=TOLERANCE)
        assert found.dampings == pytest.approx(wanted.dampings, rel=TOLERANCE)
        for name, parameter in wanted.parameters.items():
            scale = float(parameter.abs().max())
            apart = float((found.parameters[name] - parameter).abs().max())
            assert apart <= TOLERANCE * max(scale, 1.0), name


@pytest.mark.parametrize(("size", "joint"), EVERY)
def test_messages_are_as_many_and_as_large_as_stated(size: int, joint: Joint) -> None:
    for found in _found(size)[joint]:
        assert found.sent == found.stated
        assert found.sent[1] > 0


@pytest.mark.parametrize(("size", "joint"), EVERY)
def test_all_processes_have_the_same_bits(size: int, joint: Joint) -> None:
    first, *others = _found(size)[joint]
    for other in others:
        assert other.losses == first.losses
        assert all(map(torch.equal, other.parameters.values(), first.parameters.values()))
