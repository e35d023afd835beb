"""Ahead-of-time tier: elementwise, reducing and random kernels as each architecture would run them."""

import re

import pytest
import sympy
import torch

from gncompile.emit.triton_functions import kernels_module, triton_function
from gncompile.functions import PRIMITIVES, select, sigmoid, softplus
from gncompile.functions.primitives import logsumexp
from gncompile.functions.transfer import ARGUMENT, transfer
from gncompile.runtime.source_files import load_source
from gncompile.triton_kernels import elementwise, gemm, inverse, random, reduce, sampling, softmax
from gncompile.triton_kernels.pointwise_groups import Problem
from gncompile.triton_kernels.resources import resources
from gncompile.triton_kernels.settings import SHARED_MEMORY

x, y, z = sympy.symbols("x y z", real=True)
CAPABILITIES = (80, 90, 100)
HEAVY = ("gelu", "mish")
"""Transfer functions with the longest second derivatives."""


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """Generated functions: every primitive, a loss with its gradient, a small update."""
    folder = tmp_path_factory.mktemp("source")
    several = {select: (x, y, x), logsumexp: (x, y, -x)}
    every = [function(*several.get(function, (x,))) for function in PRIMITIVES.values()]
    rules = {name: transfer(name).rule for name in HEAVY}
    texts = [
        *(
            triton_function(name, [rule.value, rule.slopes[0], rule.seconds[0, 0]], [ARGUMENT])
            for name, rule in rules.items()
        ),
        triton_function("every_primitive", sum(every) + sympy.sqrt(x) + x**y / 3, [x, y]),
        triton_function("loss", [softplus(x) - x * y, sigmoid(x) - y], [x, y]),
        triton_function("update", x + y / 10, [x, y]),
        triton_function("residual", sympy.sqrt(abs(x)) * (y - z), [z, x, y]),
        triton_function("bernoulli", sigmoid(x) - select(sigmoid(x) - y, 1, 0), [x, y]),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GNCOMPILE_CACHE", str(folder))
        module, _ = load_source(kernels_module(texts), "compile_test")
    return module


def compiled(launches, capability):
    """Resources of each launch; nothing may spill, nor compile to a lone trap."""
    found = [resources(launch, capability) for launch in launches]
    for launch, used in zip(launches, found, strict=True):
        assert used.spilled == 0, launch.kernel
        assert not used.is_trap, launch.kernel
    return found


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_primitive(functions, dtype, capability):
    a, b = (torch.ones(1000, 784, dtype=dtype) for _ in range(2))
    few = elementwise.ElementwiseSettings(1, 128)  # nobody computes twenty functions at once
    (used,) = compiled(
        elementwise.elementwise.launches(functions.every_primitive, [a, b], [a], settings=few),
        capability,
    )
    # A float64 division, logarithm or root is never the float32 one.
    assert (dtype == torch.float64) == ("div.rn.f64" in used.ptx)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", HEAVY)
def test_long_functions_fit_the_default_tile(functions, name, dtype):
    a = torch.ones(1000, 784, dtype=dtype)
    launches = elementwise.elementwise.launches(getattr(functions, name), [a], [a, a, a])
    for capability in (80, 90):
        compiled(launches, capability)


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_elementwise_and_reduction_kernels(functions, capability):
    a, b = (torch.ones(1000, 784) for _ in range(2))
    row, column, scalar = torch.ones(784), torch.ones(1000, 1), torch.ones(())
    update = [Problem((a, b), (a,)), Problem((b, a), (b,))]
    launches = [
        *elementwise.elementwise.launches(functions.update, [a, row], [b]),
        *elementwise.grouped_elementwise.launches(
            functions.update, elementwise.plan_elementwise_group(update)
        ),
        *reduce.reduce.launches(functions.loss, [a, b], scalar, outputs=[a]),
        *reduce.reduce.launches(reduce.itself, [a], row, over="rows"),
        *reduce.reduce.launches(reduce.itself, [a], column, over="columns"),
        *reduce.grouped_reduce.launches(
            reduce.product, reduce.plan_sums([Problem((a, b))]), torch.ones(1)
        ),
        *softmax.softmax.launches(a, out=b, log_sum=column),
    ]
    first, grouped, loss, *_ = compiled(launches, capability)
    for used in (first, grouped, loss):
        assert re.search(r"ld\.global\S*\.v4\.b32", used.ptx), "loads are not whole vectors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_with_draws(functions, dtype):
    a, b = (torch.ones(1000, 784, dtype=dtype) for _ in range(2))
    row, state = torch.ones(1000, 1, dtype=dtype), torch.ones(2).long()
    uniform, normal, sign = (
        random.Draw(kind, (1000, 784), state, 1) for kind in ("uniform", "normal", "sign")
    )
    launches = [
        *(
            launch
            for draw in (uniform, normal, sign)
            for launch in elementwise.elementwise.launches(functions.bernoulli, [a, draw], [b])
        ),
        *reduce.reduce.launches(functions.loss, [a, sign], row, over="columns", outputs=[b]),
        *sampling.categorical.launches(
            a, random.Draw("uniform", (1000, 1), state), b,
            epilogue=functions.residual, epilogue_inputs=(row, a),
        ),
        *sampling.advance.launches(state, 2),
    ]  # fmt: skip
    for capability in CAPABILITIES if dtype == torch.float32 else (90,):
        compiled(launches, capability)


def test_a_product_with_a_draw(functions):
    a, out, state = torch.ones(1000, 784), torch.ones(1000, 1000), torch.ones(2).long()
    launches = gemm.gemm.launches(
        a, a, out, transpose_b=True, epilogue=functions.bernoulli,
        epilogue_inputs=(random.Draw("uniform", (1000, 1000), state),), precision="high",
    )  # fmt: skip
    for capability in CAPABILITIES:
        compiled(launches, capability)


@pytest.mark.parametrize(
    ("capability", "precision", "instruction"),
    [(80, "high", "mma"), (90, "high", "wgmma"), (100, "high", "tcgen05"), (90, "highest", "fma")],
)
def test_inverse_kernels(capability, precision, instruction):
    a, x = torch.eye(1008), torch.eye(1008)
    plan = inverse.plan_inverses([inverse.Inverse(a, x, 0.1)] * 2, precision=precision)
    launches = inverse.newton_schulz.launches(plan, iterations=1, restart=2)
    # The last of the restart is an iteration with the places of X and Y exchanged; it is left out.
    found = list(zip(launches[:-3], compiled(launches[:-3], capability), strict=True))
    products = (inverse.residual_kernel, inverse.update_kernel)
    multiplied = [used for launch, used in found if launch.kernel in products]
    assert len(multiplied) == 4
    for used in multiplied:
        assert used.instructions[instruction] > 0
        assert used.shared <= SHARED_MEMORY[capability]
        assert used.copies[4] == 0, "rows are not copied in whole vectors"
