"""Emitted source and schedules as they were last read by a person; the torch backend's source also runs."""

from __future__ import annotations

import pytest
from golden import GOLDEN, OPTIONS, assert_golden, mathematics, network, trained
from small_programs import program_of, triton_texts

from gncompile.program.launches import schedule

networks = pytest.mark.parametrize("name", GOLDEN)


@networks
def test_torch_source_reads_and_computes_as_it_should(name: str, refresh_golden: bool) -> None:
    one, losses = trained(name, "torch")
    assert_golden(f"{name}_torch", mathematics(one.source), refresh_golden)
    assert losses == pytest.approx(trained(name, "reference")[1], rel=1e-9)
    assert losses[1] < losses[0]


@networks
def test_triton_source_reads_as_it_should(name: str, refresh_golden: bool) -> None:
    """That it computes so is checked in ``tests/triton``."""
    kernels, step = triton_texts(program_of(network(name), **OPTIONS))
    assert_golden(f"{name}_triton", mathematics(step, kernels), refresh_golden)


@networks
def test_launches_are_scheduled_as_they_should(name: str, refresh_golden: bool) -> None:
    text = schedule(program_of(network(name), **OPTIONS)).to_text()
    assert_golden(f"{name}_schedule", text + "\n", refresh_golden)
