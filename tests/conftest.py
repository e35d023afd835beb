"""Settings of the whole suite: one thread, fixed seeds, the same examples, every back end here."""

from __future__ import annotations

import gc
import os
import sys
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from gncompile.emit import torch_statements
from gncompile.functions import derive, stable_forms

SEED = 0

# `derandomize` draws the same examples on every machine and run, so a failure can be repeated. There
# is no deadline: the first example of a shape compiles a program, and takes longer than the next.
settings.register_profile(
    "gncompile",
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    print_blob=False,
    # Explaining a failure traces every line of torch.export, which takes minutes.
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    # `backend` is a name, the same for every example, so a fixture per test is as good as one each.
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
settings.load_profile("gncompile")

# Tests compare numbers, not speed; one thread keeps them off the other cores and their sums in one
# order.
torch.set_num_threads(1)


# Tables are as wide as this, whatever terminal the tests run in.
os.environ["COLUMNS"] = "80"

# What is tuned on this machine must not change what a test compiles.
os.environ["GNCOMPILE_TUNING"] = tempfile.mkdtemp(prefix="gncompile-untuned-")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the whole suite."""
    parser.addoption(
        "--refresh-golden", action="store_true", help="write the files in tests/emit/golden anew"
    )


def pytest_collection_finish() -> None:
    """What is imported stays: the collector need not go through all of torch and sympy again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def refresh_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written, not compared."""
    return bool(request.config.getoption("--refresh-golden"))


def pytest_report_header() -> str:
    """Print what a reader needs to repeat a failure elsewhere."""
    return f"torch {torch.__version__}, seed {SEED}, hypothesis profile 'gncompile' (derandomized)"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same global random state, in whatever order it runs."""
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def _no_programs_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests change constants that programs are derived by: what was derived before must not stand for it."""
    if pipeline := sys.modules.get("gncompile.pipeline"):
        monkeypatch.setattr(pipeline, "_programs", type(pipeline._programs)(kept=8))


@pytest.fixture(params=["reference", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each back end that this machine has."""
    return str(request.param)


@pytest.fixture
def underived() -> Iterator[None]:
    """Nothing derived or lowered before or under a wrong rule is remembered."""
    caches = (
        derive.pointwise_rule, derive.differentiate, stable_forms.stable, torch_statements._lowered,
    )  # fmt: skip
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()
