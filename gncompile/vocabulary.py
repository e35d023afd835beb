"""The transfer functions that come with the compiler, each by one declaration."""

from __future__ import annotations

from .transfer import register_transfer

register_transfer("identity", "x", doc="x")
register_transfer("tanh", "tanh(x)", doc="hyperbolic tangent")
register_transfer("sigmoid", "sigmoid(x)", doc="1 / (1 + e^-x)")
register_transfer("sin", "sin(x)", doc="sine")
register_transfer("relu", "select(x, x, 0)", doc="max(x, 0); slope 0 at the kink")
register_transfer(
    "leaky_relu",
    "select(x, x, negative_slope*x)",
    parameters={"negative_slope": 0.01},
    doc="x above zero, negative_slope x elsewhere",
)
register_transfer(
    "elu",
    "select(x, x, alpha*expm1(x))",
    parameters={"alpha": 1.0},
    doc="x above zero, alpha (e^x - 1) elsewhere",
)
register_transfer(
    "softplus",
    "softplus(beta*x)/beta",
    parameters={"beta": 1.0},
    doc="log(1 + e^(beta x)) / beta; torch's threshold only guards its own overflow and is not needed",
)
register_transfer("silu", "x*sigmoid(x)", doc="x sigmoid(x), also called swish")
register_transfer(
    "gelu",
    "x*erfc(-x/sqrt(2))/2",
    doc="x Φ(x), Φ the normal distribution; written with erfc, which keeps its digits in the left tail",
)
register_transfer(
    "gelu_tanh",
    "x*sigmoid(2*sqrt(2/pi)*(x + 0.044715*x**3))",
    doc="torch's gelu(approximate='tanh'), for (1 + tanh u)/2 is sigmoid(2u)",
)
