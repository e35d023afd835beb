"""Settings of the whole suite: one thread, fixed seeds, the same examples, every back end here."""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

from gncompile import pipeline
from gncompile.base.exact_key import Recent
from gncompile.emit import step_source, torch_statements
from gncompile.functions import derive, stable_forms
from gncompile.runtime import source_files

SEED = 0

KEPT = ((pipeline, "_programs"), (step_source, "_sources"), (source_files, "_loaded"))
"""The caches of programs, of their sources, and of these as modules."""
PROGRAMS = 50
"""What each keeps of a file of tests."""
CHANGES = {"monkeypatch", "underived"}
"""Fixtures of tests that change constants and rules."""

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


@contextmanager
def _no_programs_yet() -> Iterator[None]:
    """Nothing derived, written or loaded before is used within the block, nor what is made in it later."""
    with pytest.MonkeyPatch.context() as patch:
        for module, cache in KEPT:
            patch.setattr(module, cache, Recent(kept=PROGRAMS))
        yield


@pytest.fixture(scope="module", autouse=True)
def _programs_of_a_file() -> Iterator[None]:
    """The tests of a file compile many networks again and again: each is derived for the first of them."""
    with _no_programs_yet():
        yield


@pytest.fixture(autouse=True)
def _programs_of_a_change(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that may change what programs are derived by shares none with others."""
    with _no_programs_yet() if CHANGES & set(request.fixturenames) else nullcontext():
        yield


@pytest.fixture(params=["reference", "torch"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each back end that this machine has."""
    return str(request.param)


@pytest.fixture
def underived() -> Iterator[Callable[[], None]]:
    """Nothing derived or lowered before or under a wrong rule is remembered; call it to forget once more."""
    caches = (
        derive.pointwise_rule, derive.differentiate, stable_forms.stable, torch_statements._lowered,
    )  # fmt: skip

    def forget() -> None:
        for cached in caches:
            cached.cache_clear()
        for module, cache in KEPT:
            setattr(module, cache, Recent(kept=PROGRAMS))

    forget()
    yield forget
    forget()
