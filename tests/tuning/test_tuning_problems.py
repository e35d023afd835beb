"""The torch backend's tuning problems: candidates are right, wrong ones are seen, times are the shortest."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gncompile.runtime import linalg
from gncompile.tuning import cpu_operations
from gncompile.tuning.cpu import CpuProblem
from gncompile.tuning.cpu_operations import OPERATIONS
from gncompile.tuning.problem import Key

SHAPES = {
    "symmetric_product": [(20, 300), (65, 300), (1, 520)],
    "second_moment": [(33, 300, 1), (7, 520, 0)],
    "damped_inverse": [(1,), (63,), (401,)],
    "affine": [(17, 5, 3), (1, 70, 65)],
    "slope_tanh": [(7, 65, 1), (3, 5, 2)],
    "slope_sigmoid": [(7, 65, 1)],
    "slope_relu": [(7, 65, 3)],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("kernel", "shape"), [(kernel, shape) for kernel in SHAPES for shape in SHAPES[kernel]]
)
def test_every_candidate_is_right(kernel: str, shape: tuple[int, ...], dtype: str) -> None:
    problem = CpuProblem(Key(kernel, "abc", shape, dtype, "highest"), 1, OPERATIONS[kernel])
    assert problem.candidates[0].options == {}
    for candidate in problem.candidates:
        assert problem.check(candidate) is None


@pytest.mark.parametrize("wrong", ["twice", "upper", "unwritten"])
def test_a_wrong_variant_is_rejected(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """As fast as can be: off by a factor, only one triangle written, or nothing at all."""

    def product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, **options: object) -> None:
        if wrong == "twice":
            torch.mm(a.T, b, out=out).mul_(2)
        elif wrong == "upper":
            out.copy_((a.T @ b).triu())

    key = Key("symmetric_product", "abc", (20, 300), "float32", "highest")
    problem = CpuProblem(key, 1, OPERATIONS["symmetric_product"])
    monkeypatch.setattr(linalg, "symmetric_product", product)
    found = problem.check(problem.candidates[1])
    assert found is not None
    assert "relative error" in found


def test_an_inverse_that_loses_digits_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """By quarters with explicit inverses: exact mathematics, but errors grow with the condition squared."""

    def quarters(m: torch.Tensor, damping: torch.Tensor, out: torch.Tensor, **_: object) -> None:
        n = len(m) // 2
        shifted = m + damping * torch.eye(len(m))
        a, b, c = shifted[:n, :n], shifted[n:, :n], shifted[n:, n:]
        inverse = torch.linalg.inv(a)
        x = b @ inverse
        s = torch.linalg.inv(c - x @ b.T)
        out[:n, :n], out[n:, n:] = inverse + x.T @ s @ x, s
        out[n:, :n], out[:n, n:] = -s @ x, -(s @ x).T

    key = Key("damped_inverse", "abc", (400,), "float32", "highest")
    problem = CpuProblem(key, 1, OPERATIONS["damped_inverse"])
    monkeypatch.setattr(linalg, "damped_inverse", quarters)
    assert problem.check(problem.candidates[0]) is not None


def test_options_that_do_the_same_are_one_candidate() -> None:
    def widths(size: int) -> list[object]:
        return [
            o.get("block", "default") for o in OPERATIONS["symmetric_product"].options((200, size))
        ]

    assert widths(100) == ["default"]
    assert widths(200) == ["default", 128]
    assert widths(300) == ["default", None, 128]
    assert widths(784) == ["default", None, 128, 384, 512] or widths(784) == [
        "default",
        None,
        128,
        384,
    ]
    few_rows = OPERATIONS["symmetric_product"].options((9, 300))
    assert few_rows == [{}, {"block": 128}, {"block": 256}]


def test_measuring_repeats_and_takes_the_shortest_time() -> None:
    # Executions of 1.5, 0.4 and 0.3 ms: the third passes 2 ms.
    times = itertools.accumulate([0.0, 0.0015, 0.0, 0.0004, 0.0, 0.0003])
    key = Key("affine", "abc", (2, 3, 4), "float32", "highest")
    problem = CpuProblem(key, 1, OPERATIONS["affine"], clock=lambda: next(times))
    assert math.isclose(problem.measure(problem.candidates[0]), 0.0003, rel_tol=1e-9)
    assert next(times, None) is None


def test_the_source_digest_follows_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cpu_operations.DampedInverse().source
    assert before == cpu_operations.DampedInverse().source

    def other(m: torch.Tensor, damping: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(m)

    monkeypatch.setattr(cpu_operations.DampedInverse, "sources", (other,))
    assert cpu_operations.DampedInverse().source != before
