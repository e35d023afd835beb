"""Options of any type and size, by every way in: a valid value is taken, all others end in our error.

The ways are keyword options of ``compile``, :meth:`Settings.from_options`, and the settings of a checkpoint,
as which those of a run folder come in too. Nothing that is given as text may run.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from payloads import nothing_executed, payloads
from torch import nn

import gncompile
from gncompile.base.settings import CURVATURE_METHODS, Settings
from gncompile.base.typed import check_of, hints
from gncompile.errors import CheckpointError, CompileError, GncompileError, OptionWarning
from gncompile.training.arguments import checked_seed
from gncompile.training.stored_settings import settings_from_data, stored_loss

NAMES = [field.name for field in dataclasses.fields(Settings)]
SEED = 20
JSON = (str, bool, int, float, list, dict, type(None))
ARGUMENTS = ("backend", "precision", "dtype", "seed", "tune")


def odd_values(marker: Path) -> list[Any]:
    """Values of many types and magnitudes; few of them are right for any one option."""
    return [
        *payloads(marker),
        *(
            None,
            True,
            False,
            "",
            "no",
            "big",
            "kfra",
            "KFRA",
            "0.1",
            "None",
            b"1",
            "\x00",
            "é" * 99,
        ),
        *(0, 1, -1, 2, 7, 2**31, 2**63, -(2**63), 10**30, 10**400),
        *(0.0, -0.0, 0.5, 0.9, 1.0, 1.5, 2.0, -1.0, 1e-320, 1e308, math.inf, -math.inf, math.nan),
        *(1j, [], (), {}, set(), [1], (5, 1), (1, 0), (1, 2), (0.1, "a"), [0.1, 10], (1, 2, 3)),
        *({"*": 1}, {"*": "kfra"}, {"*": "x"}, {"*": -1.0}, {1: 2}, {"*": {"*": 1}}, object(), int),
        *(np.float32(0.5), np.float64(2), np.int64(3), np.bool_(True), np.ones(1), np.ones(())),
        *(torch.tensor(0.5), torch.ones(3), Fraction(1, 2), lambda: 1),
    ]


def require_explained(error: Exception, word: str) -> None:
    """An error of bounded length that says ``word``."""
    assert word in str(error)
    assert len(str(error)) < 1500


def same(a: object, b: object) -> bool:
    return bool(a == b) or repr(a) == repr(b)


def test_from_options_takes_what_is_valid_and_nothing_else(tmp_path: Path) -> None:
    marker = tmp_path / "from_an_option"
    taken = 0
    with nothing_executed(marker):
        for name, value in itertools.product(NAMES, odd_values(marker)):
            try:
                settings = Settings.from_options(**{name: value})
            except CompileError as error:
                require_explained(error, "what to do")
                continue
            taken += 1
            kept = getattr(settings, name)
            assert check_of(hints(Settings)[name])(kept), (name, value)
            assert Settings.from_options(**dataclasses.asdict(settings)) == settings
            if isinstance(value, float | int) and not isinstance(value, bool | None):
                assert same(kept, value) or kept == float(value)
    assert taken > len(NAMES)


def test_pairs_of_options_keep_their_bounds(tmp_path: Path) -> None:
    draw, values = random.Random(SEED), odd_values(tmp_path / "from_two_options")
    for _ in range(2000):
        options = {name: draw.choice(values) for name in draw.sample(NAMES, 2)}
        try:
            settings = Settings.from_options(**options)
        except GncompileError:
            continue
        numbers = [v for v in dataclasses.asdict(settings).values() if isinstance(v, float)]
        assert all(map(math.isfinite, numbers))
        assert 0 < settings.damping_bounds[0] <= settings.damping_bounds[1]


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


@pytest.mark.filterwarnings("ignore")
def test_compile_takes_what_is_valid_and_nothing_else(tmp_path: Path) -> None:
    """A draw of options and arguments through the whole of ``compile``, and one step."""
    marker = tmp_path / "from_compile"
    draw, values = random.Random(SEED), odd_values(marker)
    x, y = torch.rand(8, 3), torch.rand(8, 2)
    refused = 0
    with nothing_executed(marker):
        for name in [*ARGUMENTS * 2, *draw.sample(NAMES, 8)]:
            options = {"tune": "off", name: draw.choice(values)}
            if options.get("samples", 1) in (2**31, 7):
                continue  # valid, and long
            try:
                gncompile.compile(net(), "mse", x, **options).step(x, y)
            except GncompileError:
                refused += 1
    assert refused > 9


def about(path: Path) -> dict[str, Any]:
    """What a checkpoint says of a trainer, as its header holds it."""
    x = torch.zeros(2, 3)
    gncompile.compile(net(), "mse", x, tune="off").save(path)
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["gncompile"])
    return found


def test_settings_of_checkpoints(tmp_path: Path) -> None:
    marker, path = tmp_path / "from_a_checkpoint", tmp_path / "checkpoint"
    data = about(path)
    right = settings_from_data(data, path)
    values = [v for v in odd_values(marker) if type(v) in JSON]
    with nothing_executed(marker):
        for name, value in itertools.product([*NAMES, "unknown"], values):
            changed = {**data, "settings": {**data["settings"], name: value}}
            try:
                found = settings_from_data(changed, path)
            except CheckpointError as error:
                require_explained(error, str(path))
                continue
            assert found.keys() == right.keys()
        for name, value in itertools.product(
            ("backend", "precision", "variants", "settings"), values
        ):
            try:
                settings_from_data({**data, name: value}, path)
            except CheckpointError as error:
                require_explained(error, str(path))


def test_settings_of_a_checkpoint_written_before(tmp_path: Path) -> None:
    """``exact_damping`` was an option of its own, and so was the rate by which γ is tried."""
    path = tmp_path / "checkpoint"
    data = about(path)
    for before, inverse in ((False, "cholesky"), (True, "eigen")):
        old = {**data["settings"], "exact_damping": before, "factor_damping_rate": 0.5}
        assert settings_from_data({**data, "settings": old}, path)["inverse"] == inverse
    old = {**data["settings"], "factor_damping_rate": 0.25}
    with pytest.raises(CheckpointError, match="unknown option 'factor_damping_rate'"):
        settings_from_data({**data, "settings": old}, path)


def test_losses_of_checkpoints(tmp_path: Path) -> None:
    marker, path = tmp_path / "from_a_loss", tmp_path / "checkpoint"
    data = about(path)
    values = [v for v in odd_values(marker) if type(v) in JSON]
    stored_loss(data, path)
    with nothing_executed(marker):
        for name, value in itertools.product([*data["loss"], "outputs", "label_smoothing"], values):
            try:
                stored_loss({**data, "loss": {**data["loss"], name: value}}, path)
            except CheckpointError as error:
                require_explained(error, str(path))
        for value in values:
            with pytest.raises(CheckpointError, match="a loss"):
                stored_loss({**data, "loss": value}, path)


# --- what is said ------------------------------------------------------------------------------------------

SAID: tuple[tuple[dict[str, Any], str], ...] = (
    ({"l2": -1}, "option l2 = -1"),
    ({"l2": math.nan}, "option l2 = nan"),
    ({"l2": math.inf}, "option l2 = inf"),
    ({"l2": "much"}, "pass a number or a mapping from patterns to numbers"),
    ({"l2": {"*.weight": -0.1}}, "l2['*.weight'] = -0.1"),
    ({"damping_bounds": (5, 1)}, "pass (low, high), 0 < low ≤ high"),
    ({"damping_bounds": (1, 0)}, "pass (low, high), 0 < low ≤ high"),
    ({"damping_bounds": 1.0}, "pass (a number, a number)"),
    ({"search_steps": -3}, "pass a whole number, 0 or greater"),
    ({"layer_steps": -1}, "pass a whole number, 0 or greater"),
    ({"samples": 1.5}, "option samples = 1.5 is of type float"),
    ({"samples": 0}, "pass a whole number, 1 or greater"),
    ({"samples": True}, "option samples = True is of type bool"),
    (
        {"momentum": 0.9},
        "pass True or False, its size is chosen in every step; sgd_momentum is the",
    ),
    ({"momentum": "no"}, "option momentum = 'no' is of type str"),
    ({"momentum": 1}, "option momentum = 1 is of type int"),
    ({"method": None}, "option method is of type NoneType"),
    ({"method": "KFRA"}, "unknown method 'KFRA'. Did you mean 'kfra'?"),
    ({"method": {"*": "kfrac"}}, "Did you mean 'kfra'?"),
    ({"damping": "big"}, "option damping = 'big' is of type str"),
    ({"damping": math.inf}, "pass a positive, finite number"),
    ({"factor_share": 2.0}, "pass a number in (0, 1]"),
    ({"step_cap": -1.0}, "option step_cap = -1.0"),
    ({"damping": torch.tensor(0.1)}, "option damping is of type Tensor"),
    ({"sgd_momentum": -5.0, "method": "sgd"}, "pass a number in [0, 1)"),
    ({"lr": 0.1}, "learning_rate is that of method='adam' or 'sgd'"),
    ({"weight_decay": 0.1}, "use l2"),
    ({"device": "cpu"}, "model.to(device)"),
    ({"batch_size": 3}, "the batch is what step or fit are given"),
    ({"dampin": 0.1}, "Did you mean 'damping'?"),
    ({"inverse": "qr"}, "unknown inverse 'qr'"),
    ({"exact_damping": True}, "use inverse='eigen'"),
    ({"method": "adamw"}, "Did you mean 'adam'?"),
)


@pytest.mark.parametrize(("options", "said"), SAID, ids=[str(options) for options, _ in SAID])
def test_what_is_wrong_is_said_with_what_to_pass(options: dict[str, Any], said: str) -> None:
    with pytest.raises(CompileError) as caught:
        Settings.from_options(**options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"learning_rate": 1e-6}, "option learning_rate = 1e-06 has no effect with method='kfra'"),
        ({"sgd_momentum": 0.5}, "leave it out, or use method='sgd'"),
        ({"sgd_momentum": 0.5, "method": "adam"}, "has no effect with method='adam'"),
        ({"damping": 0.5, "method": "adam"}, "use a second-order method"),
        ({"gather_noise": None, "method": "sgd"}, "option gather_noise = None has no effect"),
    ],
)
def test_what_has_no_effect_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.warns(OptionWarning) as caught:
        Settings.from_options(**options)
    assert said in str(caught[0].message)
    assert caught[0].filename == __file__


def test_what_has_no_effect_is_said_at_the_line_that_compiles() -> None:
    with pytest.warns(OptionWarning, match="option learning_rate") as caught:
        gncompile.compile(torch.nn.Linear(2, 2), "mse", torch.zeros(2, 2), learning_rate=0.5)
    assert {w.filename for w in caught if w.category is OptionWarning} == {__file__}


def test_an_unknown_option_is_answered_with_all_by_group() -> None:
    with pytest.raises(
        CompileError, match="unknown option 'dampng'. Did you mean 'damping'"
    ) as caught:
        Settings.from_options(dampng=1)
    lines = str(caught.value).splitlines()
    assert "    batches: gather_samples, gather_noise" in lines
    assert all(any(re.search(rf"[ :,]{name}(,|$)", line) for line in lines) for name in NAMES)


def test_numbers_of_any_library_become_pythons_own() -> None:
    given = {"damping": np.float32(0.5), "samples": np.int64(3), "momentum": np.bool_(False)}
    settings = Settings.from_options(**given, l2={"*": Fraction(1, 4)}, damping_bounds=[1, 2])
    assert [type(getattr(settings, name)) for name in given] == [float, int, bool]
    assert settings.l2 == {"*": 0.25}
    assert settings.damping_bounds == (1.0, 2.0)


def test_methods_of_first_order_take_their_options() -> None:
    assert Settings.from_options(method="sgd", learning_rate=1, sgd_momentum=0).learning_rate == 1.0
    for method in CURVATURE_METHODS:
        assert Settings.from_options(method=method).method == method


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"l2": {"*.wieght": 1e-3}}, r"no parameter matches the pattern '\*.wieght' of l2"),
        ({"l2": {"0.wieght": 1e-3}}, "Did you mean '0.weight'"),
        ({"method": {"*": "kfra", "decoder.*": "kfac"}}, "no layer matches the pattern"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
        ({"backend": None}, "backend is of type NoneType"),
        ({"precision": "hi"}, "unknown precision 'hi'. Did you mean 'high'?"),
        ({"dtype": "float64"}, "dtype 'float64' is not supported"),
        ({"dtype": torch.float16}, "dtype torch.float16 is not supported"),
        ({"tune": 3}, "tune is of type int"),
        ({"tune": "fast"}, "unknown tune='fast'"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**63}, "seed = 9223372036854775808"),
        ({"seed": 1.0}, "seed = 1.0 is of type float"),
    ],
)
def test_arguments_of_compile(given: dict[str, Any], said: str) -> None:
    with pytest.raises(CompileError, match=said):
        gncompile.compile(net(), "mse", torch.zeros(2, 3), **{"tune": "off", **given})


def test_seeds() -> None:
    assert checked_seed(np.int32(7)) == 7
    assert checked_seed(2**63 - 1) == 2**63 - 1
