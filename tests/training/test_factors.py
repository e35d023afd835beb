"""Kronecker factors as a matrix: what they compute is that of the matrix written out, float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import gncompile
from gncompile import KroneckerFactors
from gncompile.errors import CompileError, GncompileError, LossError

LAMBDA = 0.3
MODEL = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(9, 2)).double()
X, Y = torch.randn(12, 2, 4).double(), torch.randn(12, 2).double()


@pytest.fixture(scope="module")
def factors() -> dict[str, KroneckerFactors]:
    return gncompile.curvature(MODEL, "mse", X, Y, method="kflr")


@pytest.mark.parametrize("layer", ["0", "3"])
def test_the_matrix_and_its_inverse_are_those_written_out(
    factors: dict[str, KroneckerFactors], layer: str
) -> None:
    f, n = factors[layer], 4
    dense = f.dense()
    damped = dense + LAMBDA * torch.eye(len(dense)).double()
    v = torch.randn(n, 2, *f.shape).double()
    flat = v.flatten(2)
    assert_same((f @ v).flatten(2), flat @ dense)
    assert_same(f.solve(v, LAMBDA).flatten(2), torch.linalg.solve(damped, flat.mT).mT)
    assert_same(f.solve(v[0, 0], LAMBDA), f.solve(v, LAMBDA)[0, 0])
    assert_same(f.diagonal().flatten(), dense.diagonal())
    assert_same(f.trace(), dense.trace())
    assert_same(f.logdet(LAMBDA), torch.linalg.slogdet(damped)[1])
    assert_same(f.eigenvalues().flatten().sort()[0], torch.linalg.eigvalsh(dense))


def assert_same(found: Tensor, wanted: Tensor) -> None:
    """The same sums in another order; the damped matrix's condition is below 1e3."""
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("leading", [(), (4,), (4, 2)])
def test_parameters_go_in_and_come_out_in_their_shapes(
    factors: dict[str, KroneckerFactors], leading: tuple[int, ...]
) -> None:
    v = {
        "0.weight": torch.randn(*leading, 3, 2, 2).double(),
        "0.bias": torch.randn(*leading, 3).double(),
    }
    joined = torch.cat([v["0.weight"].flatten(-2), v["0.bias"][..., None]], dim=-1)
    for found, wanted in (
        (factors["0"] @ v, factors["0"] @ joined),
        (factors["0"].solve(v, LAMBDA), factors["0"].solve(joined, LAMBDA)),
    ):
        assert {name: t.shape for name, t in found.items()} == {n: t.shape for n, t in v.items()}
        assert_same(found["0.weight"].flatten(-2), wanted[..., :-1])
        assert_same(found["0.bias"], wanted[..., -1])


class Transposed(nn.Module):
    """A weight that is used from its other side lies in memory as its transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.T)


def test_a_transposed_weight_keeps_its_shape() -> None:
    model, x = Transposed().double(), torch.randn(6, 3).double()
    (f,) = gncompile.curvature(model, "mse", x, Y[:6], method="kflr").values()
    v = torch.randn(3, 2).double()
    moment = x.T @ x / 6  # of the inputs, the rows of the weight; Ḡ of half a square is I
    assert_same((f @ {"weight": v})["weight"], moment @ v)


def test_factors_of_batches_add_up(factors: dict[str, KroneckerFactors]) -> None:
    parts = [
        gncompile.curvature(MODEL, "mse", X[p], Y[p], method="kflr")
        for p in (slice(0, 5), slice(5, 6), slice(6, 12))
    ]
    loaders = (
        DataLoader(TensorDataset(X, Y), batch_size=5),
        [(X[:5], Y[:5]), (X[5:], Y[5:])],
    )
    found = [{layer: sum(part[layer] for part in parts) for layer in factors}]
    found += [gncompile.curvature(MODEL, "mse", data, method="kflr") for data in loaders]
    for each in found:
        for layer, whole in factors.items():
            assert each[layer].samples == whole.samples == 12
            assert_same(each[layer].input, whole.input)
            assert_same(each[layer].output, whole.output)


def test_batches_of_a_sum_have_no_common_mean() -> None:
    batches = [(X[:5], Y[:5]), (X[5:], Y[5:])]
    with pytest.raises(LossError, match="(?s)only the whole data tell.*pass all data as one batch"):
        gncompile.curvature(MODEL, nn.MSELoss(reduction="sum"), batches)
    with pytest.raises(GncompileError, match="no batches"):
        gncompile.curvature(MODEL, "mse", [])


WRONG: dict[str, tuple[Any, str]] = {
    "float32": (torch.zeros(3, 5), r"(?s)v is torch.float32.*\.to\(dtype\)"),
    "transposed": (torch.zeros(5, 3).double(), r"(?s)expected: \[…, 3, 5\].*got:      \[5, 3\]"),
    "a number": (1.0, "(?s)wrong shape.*got:      float"),
    "half of it": (
        {"0.weight": torch.zeros(3, 2, 2).double()},
        "(?s)wrong '0.bias'.*got:      none",
    ),
    "flat": (
        {"0.weight": torch.zeros(3, 4).double(), "0.bias": torch.zeros(3).double()},
        r"(?s)wrong '0.weight'.*expected: \[…, 3, 2, 2\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_said(factors: dict[str, KroneckerFactors], case: str) -> None:
    v, text = WRONG[case]
    with pytest.raises(CompileError, match=text):
        factors["0"] @ v
    with pytest.raises(CompileError, match=text):
        factors["0"].solve(v, LAMBDA)


def test_singular_factors_ask_for_damping() -> None:
    f = gncompile.curvature(MODEL, "mse", X[:1], Y[:1], method="kflr")["3"]  # a Q of rank 1
    v = torch.randn(f.shape).double()
    with pytest.raises(CompileError, match="(?s)are singular.*give a damping"):
        f.solve(v)
    matrix = torch.eye(2).double() + 0.1
    regular = KroneckerFactors("a", matrix, matrix)
    v = torch.randn(2, 2).double()
    assert_same(regular @ regular.solve(v), v)


def test_what_cannot_be_added_is_said(factors: dict[str, KroneckerFactors]) -> None:
    with pytest.raises(CompileError, match="(?s)different layers.*expected: 0.*got:      3"):
        factors["0"] + factors["3"]
    average = KroneckerFactors("0", factors["0"].input, factors["0"].output)
    with pytest.raises(CompileError, match="do not tell of how many samples"):
        average + factors["0"]
    with pytest.raises(CompileError, match="do not tell where its parameters stand"):
        average @ {"0.weight": torch.zeros(3, 2, 2).double()}
    with pytest.raises(TypeError):
        factors["0"] + 1
