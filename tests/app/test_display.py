"""What people see: help lines, tables of the commands, and how records print themselves."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import gncompile
from gncompile.app.cli import app, main
from gncompile.training.records import History, Record
from gncompile.verification.checks import Check, VerifyReport

COMMANDS = sorted(
    command.name or command.callback.__name__  # type: ignore[union-attr]
    for command in app.registered_commands
)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that ends well prints."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("width", [80, 120])
def test_help_lists_every_command_with_its_whole_line(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    shown = printed(capsys, "--help")
    assert "..." not in shown.partition("Commands:")[2]
    assert all(len(line) <= width for line in shown.splitlines())
    words = " ".join(shown.split())
    for command in app.registered_commands:
        first = (command.callback.__doc__ or "").partition("\n\n")[0]  # type: ignore[union-attr]
        assert " ".join(first.split()) in words
    listed = [
        line.split()[0]
        for line in shown.partition("Commands:")[2].splitlines()
        if line[2:3].strip()
    ]
    assert listed[:6] == ["init", "check", "train", "resume", "evaluate", "predict"]
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_fits_a_line(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert all(len(line) <= 80 for line in printed(capsys, command, "--help").splitlines())


def test_env_fits_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    shown = printed(capsys, "env")
    assert re.search(r"^torch +2", shown, re.MULTILINE)
    assert "GNCOMPILE_TUNING" in shown


class Deep(nn.Module):
    """Layers with long names."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_block = nn.ModuleList(
            nn.ModuleDict({"projection_matrix": nn.Linear(3, 3)}) for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.encoder_block:
            x = block["projection_matrix"](x).tanh()  # type: ignore[index]
        return x


def test_a_summary_fits_its_width_and_tells_costs_of_the_batch() -> None:
    trainer = gncompile.compile(Deep(), "mse", torch.randn(4, 3))
    for width in (80, 120):
        lines = trainer.summary(batch=64, width=width).splitlines()
        assert all(len(line) <= width for line in lines)
        assert "costs of a mean step on 64 samples, 32-bit numbers" in lines
        alone = "encoder_block.2.projection_matrix" in lines
        assert alone == (width == 80)  # the name above its row, or in it
    assert "a step of 64 samples" in trainer.explain(batch=64)
    assert repr(trainer) == "Trainer(Deep, kfra, 3 layers, 0 updates)"


def test_records_print_themselves_in_a_line() -> None:
    x = torch.randn(5, 3)
    factors = gncompile.curvature(nn.Linear(3, 2), "mse", x, torch.randn(5, 2))
    (one,) = factors.values()
    assert str(one).startswith("KroneckerFactors(")
    assert str(one).endswith("Ḡ [2, 2] ⊗ Q [4, 4], float32, 5 samples)")
    records = [Record(n, 1.0 / n, 1.0 / n, validation_loss=2.0 / n) for n in (1, 2)]
    history = History(records, ended="2 updates made")
    expected = "2 updates, loss 1 → 0.5, best validation 1 at update 2, 2 updates made"
    assert repr(history) == f"History({expected})"
    assert repr(History()) == "History(0 updates)"
    assert str(gncompile.transfer("leaky_relu", negative_slope=0.2)).startswith("leaky_relu(")
    assert "tanh" in gncompile.transfer_names()


def test_a_verification_prints_its_table() -> None:
    checks = (Check("", "loss", "its formula in torch", 0.0), Check("fc", "Q", "E[ā āᵀ]", 1.0))
    report = VerifyReport("Net", 0, (("x", 9, 3),), checks)
    assert str(report) == report.to_text() == VERIFIED


VERIFIED = """\
Net, float64, seed 0; shrunken: x 9→3

layer      compared  with                  rel. error  allowed
---------  --------  --------------------  ----------  -------  ------
(network)  loss      its formula in torch     0.0e+00    1e-09  ok
fc         Q         E[ā āᵀ]                  1.0e+00    1e-09  FAILED

1 of 2 comparisons failed"""
