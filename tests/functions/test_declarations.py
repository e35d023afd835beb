"""The ways to declare: decorators, Piecewise, other packages' entry points, and model files."""

from __future__ import annotations

import importlib
import math
import sys
import warnings

import pytest
import sympy
import torch
from torch.nn import functional

import gncompile
from gncompile.base import plugins
from gncompile.errors import ExpressionError, LossError, ModelFileError, RegistrationError
from gncompile.frontends.model_file import load_model_file
from gncompile.functions import parsing, select, softplus
from gncompile.functions import transfer as registry
from gncompile.functions.declarations import derivative_size, without_piecewise
from gncompile.functions.expressions import evaluate
from gncompile.functions.transfer import (
    ARGUMENT,
    register_transfer,
    transfer,
    transfer_function,
)
from gncompile.losses import vocabulary as losses

x = ARGUMENT


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_DECLARED", dict(registry._DECLARED))
    monkeypatch.setattr(losses, "_registered", {})
    before = dict(parsing.FUNCTIONS)
    yield
    parsing.FUNCTIONS.clear()
    parsing.FUNCTIONS.update(before)


# Decorators ------------------------------------------------------------------------------------------------


def test_a_function_is_a_declaration():
    @transfer_function
    def bumpy(x, height=0.5, pace=2):
        """Rises with bumps."""
        return x + height * sympy.sin(pace * x)

    assert bumpy.parameters == (("height", 0.5), ("pace", 2.0))
    assert bumpy.doc == "Rises with bumps."
    assert f"{__file__}:" in bumpy.declared_at
    assert bumpy.rule.slopes[0] == sympy.cos(2 * x) + 1
    assert transfer("bumpy", height=3).expression == x + 3 * sympy.sin(2 * x)
    assert parsing.parse_expression("bumpy(2*x, pace=1)", {"x": x}) == 2 * x + sympy.sin(2 * x) / 2


def test_a_decorator_takes_a_name_and_a_domain():
    @transfer_function(name="half_line", domain=(0, math.inf))
    def unused_name(t):
        return sympy.log(t)

    assert unused_name.name == "half_line"
    assert unused_name.expression == sympy.log(x)
    assert transfer("half_line").domain == (0, math.inf)


def test_a_declared_function_as_a_module_is_traced_and_agrees_with_torch():
    mish = register_transfer("my_mish", "x*tanh(softplus(x))")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), mish.module(), torch.nn.Linear(4, 2)).double()
    h = torch.randn(5, 4).double()
    torch.testing.assert_close(net[1](h), functional.mish(h))
    assert gncompile.verify(net, "mse", torch.zeros(2, 3)).ok


def _no_default(x, y):
    return x


def _text_default(x, name="a"):
    return x


def _starred(*x):
    return x


def _float_function(x):
    return math.tanh(x)


def _branch(x):
    return x if x > 0 else 0


def _tuple(x):
    return (x, x)


def _relation(x):
    return x > 0


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (_no_default, "has the signature .*[\\s\\S]*1 argument without default"),
        (_text_default, "has the signature"),
        (_starred, "has the signature"),
        (_float_function, "does not yield an expression[\\s\\S]*use sympy's functions"),
        (_branch, "does not yield an expression[\\s\\S]*select\\(condition"),
        (_tuple, "does not yield an expression|returns a Tuple, no expression"),
        (_relation, "returns a StrictGreaterThan, no expression"),
        (torch.tanh, "declared from a plain function, got builtin"),
    ],
)
def test_functions_that_are_no_declarations(function, text):
    with pytest.raises(RegistrationError, match=text):
        transfer_function(function)


def test_a_loss_by_a_function():
    @gncompile.loss_function(sampler="normal")
    def precise(z, y, precision=3):
        return precision * (z - y) ** 2 / 2

    assert losses.resolve_loss("precise") is precise
    assert precise.curvature == 3
    with pytest.raises(LossError, match="not convex"):

        @gncompile.loss_function
        def concave(z, y):
            return -((z - y) ** 2)


# sympy's Piecewise -----------------------------------------------------------------------------------------


def test_piecewise_becomes_select_with_its_values_at_the_borders():
    t = sympy.Symbol("t")
    steps = sympy.Piecewise((-1, t < -1), (t, t <= 1), (1, True))
    read = without_piecewise(steps)
    for value in (-2, -1, 0, 1, 3):
        assert read.subs(t, value) == steps.subs(t, value)
    clipped = register_transfer("clipped", steps)
    h = torch.linspace(-3, 3, 13).double()
    torch.testing.assert_close(evaluate(clipped.rule.value, {x: h}), functional.hardtanh(h))


def test_other_piecewise_is_refused():
    t = sympy.Symbol("t", real=True)
    with pytest.raises(ExpressionError, match="its last case has a condition"):
        register_transfer("hole", sympy.Piecewise((t, t > 0)))
    with pytest.raises(ExpressionError, match="is no inequality"):
        both = (t > 0) & (t < 1)
        register_transfer("both", sympy.Piecewise((t, both), (0, True)))


def test_the_size_of_derivatives_is_an_upper_bound():
    for text in (
        "x*tanh(softplus(x))",
        "(x + 1)*(x + 2)*(x + 3)*sin(x)",
        "select(x, x**3, sin(x)*x)",
    ):
        expression = parsing.parse_expression(text, {"x": x})
        built = [expression, sympy.diff(expression, x), sympy.diff(expression, x, 2)]
        parts = sum(sum(1 for _ in sympy.preorder_traversal(e)) for e in built[:1])
        assert derivative_size(expression, (x,)) >= parts


# Entry points of other packages ----------------------------------------------------------------------------

PLUGIN = """
import gncompile

gncompile.register_transfer("from_a_package", "x/(1 + x**2)")

@gncompile.transfer_function
def decorated_there(x):
    return x + gncompile.functions.transfer.transfer("tanh")(x)

gncompile.register_loss("package_loss", "(z - y)**2 + (z - y)**4")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Real distributions on the path: one that works, one whose module fails to import."""
    for name, source in (("tiny_plugin", PLUGIN), ("broken_plugin", "raise ValueError('no luck')")):
        (tmp_path / f"{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(
            f"[gncompile.transfers]\nfrom_a_package = {name}\n\n"
            f"[gncompile.losses]\npackage_loss = {name}\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_loaded", set())
    importlib.invalidate_caches()
    yield
    for name in ("tiny_plugin", "broken_plugin"):
        sys.modules.pop(name, None)


def test_packages_are_asked_at_the_first_unknown_name(package):
    assert transfer("tanh").expression == sympy.tanh(x)
    assert "tiny_plugin" not in sys.modules
    with pytest.warns(RuntimeWarning, match="package 'broken_plugin'.*ValueError: no luck"):
        assert transfer("from_a_package").expression == x / (1 + x**2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "decorated_there" in registry.transfer_names()


def test_an_expression_may_use_a_packages_function(package):
    with pytest.warns(RuntimeWarning, match="broken_plugin"):
        parsed = parsing.parse_expression("2*from_a_package(x)", {"x": x})
    assert parsed == 2 * x / (1 + x**2)


def test_a_packages_loss_is_found(package):
    with pytest.warns(RuntimeWarning, match="broken_plugin.*gncompile.losses"):
        assert losses.resolve_loss("package_loss").curvature.subs({"z": 0, "y": 0}) is not None


def test_a_name_of_ones_own_goes_before_a_packages(package):
    register_transfer("from_a_package", "x**3")
    with pytest.warns(RuntimeWarning, match="'tiny_plugin'.*already declared"):
        registry.transfer_names()
    assert transfer("from_a_package").expression == x**3


# Model files -----------------------------------------------------------------------------------------------

FILE = """
[model]
name = "own"
[data]
name = "curves"
[network]
layers = [4, 3, 3, 2]
transfer = ["ramp", "twice"]
[loss]
expression = "sqrt(1 + (z1 - y1)**2 + (z[1] - y[1])**2)"
targets = [-inf, inf]
[training]
updates = 1
[transfer.ramp]
expression = "softplus(steep*x)/steep"
parameters = { steep = 2.0 }
domain = [-100, 100]
doc = "a smooth ramp"
[transfer.twice]
expression = "ramp(2*u, steep=1)"
"""


def load(tmp_path, text=FILE):
    path = tmp_path / "model.toml"
    path.write_text(text)
    return load_model_file(path)


def test_a_files_functions_have_parameters_domain_and_doc(tmp_path):
    file = load(tmp_path)
    ramp = file.transfers["ramp"]
    assert (ramp.parameters, ramp.domain, ramp.doc) == (
        (("steep", 2.0),),
        (-100, 100),
        "a smooth ramp",
    )
    assert "[transfer.ramp] of" in ramp.declared_at
    u = file.functions["layer2"].arguments[0]
    assert file.functions["layer2"].expression == softplus(2 * u)
    assert file.loss.outputs == 2


def test_a_files_functions_stay_in_the_file(tmp_path):
    before = registry.transfer_names(), dict(parsing.FUNCTIONS)
    load(tmp_path)
    assert (registry.transfer_names(), dict(parsing.FUNCTIONS)) == before


def test_a_file_means_the_same_whatever_the_process_has_registered(tmp_path):
    alone = load(tmp_path).functions["layer1"].expression
    register_transfer("ramp", "select(x, x, 0)")
    assert load(tmp_path).functions["layer1"].expression == alone
    assert transfer("ramp").expression == select(x, x, 0)


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("steep = 2.0 }", 'steep = "2" }', "transfer.ramp.parameters.steep"),
        ("domain =", "domian =", "unknown key 'transfer.ramp.domian'. Did you mean 'domain'"),
        ("[transfer.ramp]", "[transfer.swiglu]", "'swiglu' exists already"),
        ("[transfer.ramp]", "[transfer.relu]", "'relu' exists already"),
        ("[transfer.ramp]", "[transfer.sqrt]", "'sqrt' exists already"),
        ("steep=1)", "step=1)", "no parameter 'step'"),
        ("targets =", "target =", "unknown key 'loss.target'. Did you mean 'targets'"),
        (
            'expression = "sqrt(1 + (z1',
            'name = "mse"\nunused = "sqrt(1 + (z1',
            "unknown key 'loss.unused'",
        ),
    ],
)
def test_mistakes_in_a_file(tmp_path, old, new, text):
    assert old in FILE
    with pytest.raises((ModelFileError, ExpressionError)) as caught:
        load(tmp_path, FILE.replace(old, new))
    assert text in str(caught.value)


def test_a_files_functions_are_checked(tmp_path):
    bad = FILE.replace("softplus(steep*x)/steep", "log(x)/steep")
    with pytest.raises(
        RegistrationError, match=r"not a finite real number[\s\S]*\[transfer.ramp\] of"
    ):
        load(tmp_path, bad)


def test_a_named_loss_takes_no_other_keys(tmp_path):
    named = FILE.replace(
        FILE[FILE.index('expression = "sqrt') : FILE.index("targets")], 'name = "mse"\n'
    )
    with pytest.raises(ModelFileError, match="a loss given by name takes no other keys"):
        load(tmp_path, named)
