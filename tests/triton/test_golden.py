"""The golden source of the Triton backend, interpreted."""

from __future__ import annotations

import pytest
from golden import assert_golden, mathematics, trained
from small_programs import triton_texts


@pytest.mark.parametrize("name", ["gated"])
def test_golden_source_computes_what_the_reference_does(name: str, refresh_golden: bool) -> None:
    one, losses = trained(name, "triton")
    kernels, _ = triton_texts(one.program)
    assert_golden(f"{name}_triton", mathematics(one.source, kernels), refresh_golden)
    assert losses == pytest.approx(trained(name, "reference")[1], rel=1e-9)
