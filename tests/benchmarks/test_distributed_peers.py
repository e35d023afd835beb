"""The benchmark beside distributed peers: what it counts, and that it would notice another update."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import pairwise

import pytest
import torch
from processes import run_on

from benchmarks import distributed_peers
from benchmarks.distributed_contestants import ADAM, FACTORS, INVERSES, PLAIN, contestants
from benchmarks.distributed_peers import (
    AGREEMENT,
    Check,
    Measured,
    check_table,
    compared,
    on_paper,
    refuse,
    step_table,
    steps_of,
    updates_of,
)
from benchmarks.problems import Problem

WIDTHS, BATCH, KFAC = (12, 8, 3, 8, 12), 64, "KFAC, all in every step"
PARAMETERS = sum((a + 1) * b for a, b in pairwise(WIDTHS))


def test_what_is_sent_and_how_it_is_told() -> None:
    found = run_on(2, partial(steps_of, WIDTHS, BATCH), [ADAM])
    for rank in found[ADAM]:  # a bucket of all gradients
        assert rank.sent == {"all_reduce": [rank.steps, rank.steps * 4 * PARAMETERS]}
        assert list(rank.cpu) == list(rank.wall) == [PLAIN]
    lines = step_table(found).splitlines()
    assert lines[2].startswith(ADAM)
    assert lines[2].removeprefix(ADAM).split()[:3] == ["1", "0.0", "0.0"]


def test_kinds_of_our_steps() -> None:
    problem = Problem.make("small", WIDTHS, BATCH, "bce")
    every = contestants()[KFAC](problem.fresh(), problem.x)
    assert [every.step(problem.x) for _ in range(12)] == [INVERSES] * 12
    seldom = contestants()["KFRA, defaults"](problem.fresh(), problem.x)
    for _ in range(seldom.warm_up):
        seldom.step(problem.x)
    kinds = Counter(seldom.step(problem.x) for _ in range(seldom.cycle))
    assert kinds == {PLAIN: 10, FACTORS: 8, INVERSES: 2}


def test_updates_are_those_of_one_process_and_others_are_noticed() -> None:
    alone = updates_of(WIDTHS, KFAC)
    assert alone[0].dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    ranks = run_on(2, partial(compared, WIDTHS, alone), [KFAC])[KFAC]
    assert all(check.holds for check in ranks), ranks
    refuse({KFAC: ranks})
    apart = Check(first=0.0, last=2 * AGREEMENT, ranks=0.0)
    assert "NO" in check_table({KFAC: [ranks[0], apart]})
    with pytest.raises(SystemExit, match=r"KFAC, all in every step: further than 1e-08 apart"):
        refuse({KFAC: [ranks[0], apart]})
    refuse({"ASDL K-FAC": [apart]})


def test_bytes_that_leave_a_process() -> None:
    sent = {"all_reduce": [2, 80], "all_gather": [1, 8], "reduce": [1, 16], "broadcast": [1, 16]}
    measured = Measured({PLAIN: [1.0, 3.0]}, {PLAIN: [2.0, 4.0]}, sent)
    assert (measured.messages(), measured.handed()) == (2.5, 60)
    assert (measured.step("cpu"), measured.step("wall")) == (2, 3)
    assert measured.crossed(2) == (80 + 8 + 8 + 8) / 2
    assert measured.crossed(4) == (1.5 * 80 + 3 * 8 + 2 * 0.75 * 16) / 2


def test_bytes_on_paper() -> None:
    """Two inputs and a bias, five outputs: 15 numbers of gradient, 9 and 25 of factors."""
    assert on_paper((2, 5), 2) == {
        "KAISA, COMM-OPT": (60, 60 + 136 + 136 / 2),
        "KAISA, MEM-OPT": (90, 90 + 136),
        "Distributed Shampoo": (90, 90),
    }


def test_counting_ends_with_its_block() -> None:
    before = torch.distributed.all_reduce
    with pytest.raises(RuntimeError), distributed_peers.counted():
        assert torch.distributed.all_reduce is not before
        raise RuntimeError
    assert torch.distributed.all_reduce is before
