"""The transfer functions and gates that come with the compiler, each by one declaration.

Names, parameters and defaults are those of ``torch.nn.functional``; so is the slope taken at a kink, which
``select(c, u, v)`` settles: it is ``v`` where ``c`` is zero.
"""

from __future__ import annotations

from .declarations import GATES as GATES
from .declarations import TRANSFERS as TRANSFERS
from .declarations import built_in as declare
from .declarations import built_in_gate as declare_gate

# Piecewise linear ------------------------------------------------------------------------------------------

declare("identity", "x", doc="x")
declare("relu", "select(x, x, 0)", doc="max(x, 0); slope 0 at the kink")
declare("relu6", "clamp(x, 0, 6)", doc="x limited to [0, 6]; slope 0 at both kinks")
declare(
    "hardtanh",
    "clamp(x, min_val, max_val)",
    parameters={"min_val": -1.0, "max_val": 1.0},
    doc="x limited to [min_val, max_val]; slope 0 at both kinks",
)
declare(
    "leaky_relu",
    "select(x, x, negative_slope*x)",
    parameters={"negative_slope": 0.01},
    doc="x above zero, negative_slope x elsewhere",
)
declare(
    "prelu",
    "select(x, x, weight*x)",
    parameters={"weight": 0.25},
    doc="leaky_relu whose slope torch can train; here it is a constant, a number or one a channel",
)
declare(
    "rrelu",
    "select(x, x, (lower + upper)/2*x)",
    parameters={"lower": 1 / 8, "upper": 1 / 3},
    doc="leaky_relu at the mean of the random slopes, as in evaluation",
)
declare(
    "threshold",
    "select(x - threshold, x, value)",
    parameters={"threshold": 0.0, "value": 0.0},
    doc="x above the threshold, value elsewhere",
)
declare(
    "hardshrink",
    "select(abs(x) - lambd, x, 0)",
    parameters={"lambd": 0.5},
    doc="x outside [-lambd, lambd], 0 inside",
)
declare(
    "softshrink",
    "select(x - lambd, x - lambd, select(-x - lambd, x + lambd, 0))",
    parameters={"lambd": 0.5},
    doc="x moved towards zero by lambd, 0 within [-lambd, lambd]",
)
declare("hardsigmoid", "clamp(x + 3, 0, 6)/6", doc="(x + 3)/6 limited to [0, 1]")

# Sigmoids --------------------------------------------------------------------------------------------------

declare("sigmoid", "sigmoid(x)", doc="1 / (1 + e^-x)")
declare("tanh", "tanh(x)", doc="hyperbolic tangent")
declare("softsign", "x/(1 + abs(x))", doc="x / (1 + |x|)")
declare("arctan", "atan(x)", doc="inverse tangent, between -π/2 and π/2")
declare("tanhshrink", "x - tanh(x)", doc="x - tanh(x)")
declare("logsigmoid", "-softplus(-x)", doc="log of the sigmoid, -log(1 + e^-x)")
declare("arcsinh", "asinh(x)", doc="inverse hyperbolic sine, log(x + √(x² + 1))")
declare(
    "sinh_arcsinh",
    "sinh(delta*asinh(x) + epsilon)",
    parameters={"epsilon": 0.0, "delta": 0.5},
    doc="odd and growing as |x|^delta for epsilon = 0, which skews it (Jones and Pewsey 2009)",
)

# Rectifiers with a bend ------------------------------------------------------------------------------------

declare(
    "elu",
    "select(x, x, alpha*expm1(x))",
    parameters={"alpha": 1.0},
    doc="x above zero, alpha (e^x - 1) elsewhere",
)
declare(
    "celu",
    "select(x, x, alpha*expm1(x/alpha))",
    parameters={"alpha": 1.0},
    doc="elu whose slope is continuous for every alpha",
)
declare(
    "selu",
    "1.0507009873554805*elu(x, alpha=1.6732632423543772)",
    doc="scaled elu that keeps mean 0 and variance 1 (Klambauer et al. 2017)",
)
declare(
    "softplus",
    "softplus(beta*x)/beta",
    parameters={"beta": 1.0},
    doc="log(1 + e^(beta x)) / beta without torch's threshold, beyond which torch returns x",
)
declare("silu", "x*sigmoid(x)", doc="x sigmoid(x), also called swish")
declare("swish", "x*sigmoid(beta*x)", parameters={"beta": 1.0}, doc="silu with a steepness")
declare("quick_gelu", "x*sigmoid(1.702*x)", doc="gelu by one sigmoid, as in CLIP")
declare(
    "gelu",
    "x*erfc(-x/sqrt(2))/2",
    doc="x Φ(x), Φ the normal distribution; written with erfc, which keeps its digits in the left tail",
)
declare(
    "gelu_tanh",
    "x*sigmoid(2*sqrt(2/pi)*(x + 0.044715*x**3))",
    doc="torch's gelu(approximate='tanh'), for (1 + tanh u)/2 is sigmoid(2u)",
)
declare("mish", "x*tanh(softplus(x))", doc="x tanh(log(1 + e^x)) (Misra 2019)")
declare("hardswish", "select(3 - x, select(x + 3, x*(x + 3)/6, 0), x)", doc="x hardsigmoid(x)")
declare("squared_relu", "relu(x)**2", doc="max(x, 0)² (So et al. 2021)")

# Waves and bumps -------------------------------------------------------------------------------------------

declare("sin", "sin(x)", doc="sine")
declare(
    "snake",
    "x + sin(a*x)**2/a",
    parameters={"a": 1.0},
    doc="x + sin²(a x)/a, for periodic data (Ziyin et al. 2020)",
)
declare("gaussian", "exp(-x**2)", doc="e^(-x²)")

# Gates: u passes as far as v opens --------------------------------------------------------------------------

declare_gate("glu", "u*sigmoid(v)", doc="gated linear unit; torch splits one tensor into u and v")
declare_gate("reglu", "u*relu(v)", doc="gate by relu (Shazeer 2020, as the next two)")
declare_gate("geglu", "u*gelu(v)", doc="gate by gelu")
declare_gate("swiglu", "u*silu(v)", doc="gate by silu")
declare_gate("tanh_gate", "tanh(u)*sigmoid(v)", doc="gated activation of WaveNet and PixelCNN")
