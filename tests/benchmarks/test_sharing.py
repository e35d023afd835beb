"""The measurement of how places share factors: right where theory says what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import sharing


class Summed(nn.Module):
    """Linear, summed over the places before the loss: *reduce* is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)).sum(dim=1)


def test_cosines_losses_and_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = sharing.Problem(Summed, "mse", ("first", "second"), sharing.half_square)
    monkeypatch.setattr(sharing, "PROBLEMS", {"summed": problem})
    monkeypatch.setattr(sharing, "SAMPLES", 16)
    monkeypatch.setattr(sharing, "UPDATES", 4)
    sharing.main(seeds=1, folder=tmp_path)
    stored = json.loads((tmp_path / "sharing.json").read_text())
    cosines = {mode: [] for mode in sharing.MODES}
    for each in stored["cosines"]:
        cosines[each["mode"]].append(each["cosine"])
    assert len(cosines["expand"]) == 16  # layers, moments, dampings, methods
    for mode in ("reduce", "nearest"):  # with one product to find, nearest finds it
        assert cosines[mode] == pytest.approx([1.0] * 16, abs=1e-8)
    assert min(cosines["expand"]) < 0.99
    assert {each["updates"] for each in stored["losses"]} == {1, 2, 4}
    assert (tmp_path / "sharing.png").stat().st_size > 1000


def test_the_block_of_a_classifier_is_that_of_its_loss() -> None:
    """Squared slopes of the log-probabilities, expected under the model."""
    problem = sharing.PROBLEMS["pooled tokens"]
    model, x, _ = problem.made(0)
    x = x[:3]
    found = sharing.exact(problem, model, "second", x)
    wanted = torch.zeros_like(found)
    for sample in x:
        log_p = model(sample[None]).log_softmax(dim=1)[0]
        for k in range(4):
            own = [model.second.weight, model.second.bias]
            w, b = torch.autograd.grad(log_p[k], own, retain_graph=True)
            slope = torch.cat([w, b[:, None]], dim=1).flatten()
            wanted += log_p[k].exp().detach() * torch.outer(slope, slope) / 3
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
