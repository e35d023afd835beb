"""A primitive is declared in one place: what this file alone declares goes the whole way."""

import math

import pytest
import sympy
import torch

from gncompile.emit.torch_statements import torch_statements
from gncompile.emit.triton_functions import triton_function
from gncompile.functions import Primitive, parsing, primitives
from gncompile.functions.derive import pointwise_rule
from gncompile.functions.exact_values import ExactFunction
from gncompile.functions.expressions import evaluate
from gncompile.functions.float_values import float_function
from gncompile.functions.plain_torch import plain
from gncompile.functions.precise import precise_function
from gncompile.functions.stable_forms import stable
from gncompile.functions.transfer import define_transfer

x = sympy.Symbol("x", real=True)


class exp2(Primitive):
    """``2^x``."""

    def fdiff(self, argindex=1):
        return exp2(self.args[0]) * sympy.log(2)

    def definition(self):
        return 2 ** self.args[0]


@pytest.fixture(autouse=True)
def _declared():
    primitives.declare(exp2, "exp2", "tl.exp2", values=(0, math.inf))
    yield
    del primitives.PRIMITIVES["exp2"], primitives._DECLARED[exp2]


def test_a_new_primitive_is_read_evaluated_and_written():
    e = stable(parsing.parse_expression("x*exp2(-x)", {"x": x}))
    at = torch.linspace(-3, 3, 7, dtype=torch.float64)
    wanted = at * torch.exp2(-at)
    torch.testing.assert_close(evaluate(e, {x: at}), wanted)
    torch.testing.assert_close(plain(e, {x: at}), wanted)
    assert torch_statements(e, {x: "x"}, "y", "s{}".format) == [
        "torch.neg(x, out=y)",
        "torch.exp2(y, out=y)",
        "torch.mul(y, x, out=y)",
    ]
    assert "return (tl.exp2(-x) * x,)" in triton_function("f", e, [x]).text


def test_a_new_primitive_is_differentiated_and_checked():
    rule = pointwise_rule(exp2(x), (x,))
    assert rule.kept_slopes == (rule.output * sympy.log(2),)
    define_transfer("steep", "x*exp2(-x**2)", {}).check()


def test_references_take_its_definition():
    assert float(precise_function(exp2(x), (x,))(3)) == pytest.approx(8, rel=1e-14)
    assert float(ExactFunction(exp2(x), (x,))(3.0)) == 8
    assert float_function(exp2(x), (x, sympy.Symbol("y")))(3.0, 0.0) == 8
