"""Derivatives in other notations, as hints understand them."""

from __future__ import annotations

import pytest

from gncompile.frontends.misspelt import LONGEST, derivative_meant


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("u_t", "u t"),
        ("ut", "u t"),
        ("u_xx", "u x x"),
        ("u_x_x10", "u x x10"),
        ("u__xt", "u x t"),
        ("u__x__", "u x"),
        ("du_dt", "u t"),
        ("dudt", "u t"),
        ("d2u_dx2", "u x x"),
        ("d2u_dxdt", "u x t"),
        ("d3u_dx2_dt", "u x x t"),
        ("vel_x", "vel x"),
        ("d_x", "d x"),  # of an output d
        ("u", ""),
        ("du", ""),
        ("u_y", ""),
        ("w_x", ""),
        ("u_tau", ""),
        ("nu", ""),
        ("u_" + "x" * LONGEST, ""),
    ],
)
def test_other_notations_of_a_derivative(name: str, meant: str) -> None:
    found = derivative_meant(name, ("u", "vel", "d"), ("x", "x10", "t"))
    assert " ".join(found) == meant
