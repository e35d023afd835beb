"""The examples run: the one about an activation of one's own, in both its forms."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from gncompile.app.training_run import compile_file
from gncompile.frontends.model_file import load_model_file
from gncompile.functions import parsing
from gncompile.functions import transfer as registry

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def custom():
    """The example as a module; what it declares is forgotten afterwards."""
    declared, functions = dict(registry._DECLARED), dict(parsing.FUNCTIONS)
    spec = importlib.util.spec_from_file_location("example", EXAMPLES / "custom_activation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for table, before in ((registry._DECLARED, declared), (parsing.FUNCTIONS, functions)):
        table.clear()
        table.update(before)


METHODS = ("kfra", "kflr", "kfac", "kfac_rp", "empirical", "adam", "sgd")


def test_every_method_is_in_the_example(custom):
    assert custom.METHODS == METHODS


@pytest.mark.parametrize("method", METHODS)
def test_a_declared_activation_trains_with_every_method(custom, method):
    first, last = custom.train(method)
    assert last < 0.97 * first


def test_the_model_file_declares_the_same_activation(custom):
    file = load_model_file(EXAMPLES / "custom_activation.toml")
    assert file.transfers["smooth_step"].expression.equals(custom.smooth_step.expression)
    trainer = compile_file(file)
    x = torch.rand(64, 784, generator=torch.Generator().manual_seed(0))
    losses = [float(trainer.step(x, x).loss) for _ in range(3)]
    assert losses[-1] < 0.9 * losses[0]
