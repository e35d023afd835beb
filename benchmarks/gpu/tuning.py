"""Settings of the factor kernels, found three ways: by default, by our search, and by ``triton.autotune``.

``triton.autotune`` gets the candidates of our search, the split of a sum over programs among them, and times
them with its own benchmark. What each way chose is then checked and timed alike.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gncompile.base import config
from gncompile.emit.torch_operations import Options
from gncompile.program.schedule import Kind
from gncompile.triton_kernels.launches import run
from gncompile.triton_kernels.settings import MatrixSettings
from gncompile.tuning.problem import DEFAULT, Candidate, Key
from gncompile.tuning.search import search
from gncompile.tuning.store import Store
from gncompile.tuning.tuner import BUDGETS, bench_of, tune_step

from ..problems import Problem
from .clock import Clock
from .ours import STEADY, Engine
from .rows import Entry, Left, Prepared, Row

if TYPE_CHECKING:
    from gncompile.tuning.gpu_problem import GpuProblem

FACTORS = (Kind.SECOND_MOMENT, Kind.CONGRUENCE)
CONTENDERS = ("default", "tuned", "triton.autotune")
WALL = "gncompile tune, quick: wall time"
DRY_CANDIDATES, DRY_BUDGET = 3, 10.0
"""What ``triton.autotune`` chooses among in the interpreter, and seconds for our search there."""

Bench = Callable[..., list[float]]


def entries(engine: Engine, problem: Problem, clock: Clock) -> Iterator[Entry]:
    """A row a contender for every launch of factors in a KFRA step; on a CPU for the smallest only."""
    found = factor_problems(engine, problem)
    if not found:
        yield Entry("factor kernels", without_triton)
    if not clock.is_cuda:
        found = sorted(found, key=lambda each: sum(each.key.shape))[:1]
    budget = BUDGETS["quick"] if clock.is_cuda else DRY_BUDGET
    share = budget / max(len(found), 1)
    for each in found:
        ways: tuple[Callable[[GpuProblem], Options], ...] = (
            lambda given: DEFAULT,
            lambda given: by_search(given, share),
            by_autotune if clock.is_cuda else by_clock,
        )
        for contender, way in zip(CONTENDERS, ways, strict=True):
            yield Entry(row_name(each.key, contender), _chosen(each, way, clock))
        each.release()
    yield Entry(WALL, lambda: whole_step(engine, problem, clock))


def without_triton() -> Prepared:
    """Says that there is nothing to choose."""
    raise Left("the settings are those of Triton's kernels; without a GPU set TRITON_INTERPRET=1")


def row_name(key: Key, contender: str) -> str:
    """``congruence 1000x1000x784... float32: tuned``."""
    return f"{key}: {contender}"


def mean_name(contender: str) -> str:
    """The name of a contender's row of :func:`means`."""
    return f"{contender}, geometric mean"


def factor_problems(engine: Engine, problem: Problem) -> list[GpuProblem]:
    """The launches of a step that compute factors, at the problem's batch size."""
    if engine.backend != "triton":
        return []
    from gncompile.tuning.gpu import GpuBench

    ours = engine.trainer(problem, tune="off", **STEADY)
    bench = bench_of(ours, problem.batch)
    assert isinstance(bench, GpuBench)
    return [each for each in bench.problems(bench.keys) if each.subject.kind in FACTORS]


def _chosen(
    problem: GpuProblem, way: Callable[[GpuProblem], Options], clock: Clock
) -> Callable[[], Prepared]:
    def prepare() -> Prepared:
        candidate = Candidate(way(problem), 0.0)
        wrong = problem.check(candidate)
        if wrong:
            raise ValueError(f"{candidate}: {wrong}")
        launches = problem.launches(candidate)
        return Prepared(clock.captured(lambda: run(launches)))

    return prepare


def by_search(problem: GpuProblem, budget: float) -> Options:
    """What our search chooses with the effort ``quick``."""
    found = search([problem], "quick", budget)
    if not found.outcomes:
        raise Left(f"the search did not end within {budget:.0f} s")
    return found.outcomes[0].options


# --- triton.autotune ----------------------------------------------------------------------------------------


@dataclass
class Kernel:
    """A plan of launches as ``triton.autotune`` sees a kernel: settings are keywords of its ``run``."""

    problem: GpuProblem
    arg_names: tuple[str, ...] = ()

    @staticmethod
    def fn() -> None:
        """What the tuner takes the kernel's name from."""

    def run(self, **chosen: Any) -> None:
        """Start the launches with these settings."""
        options = {name: chosen[name] for name in SETTINGS}
        run(self.problem.launches(Candidate(options, 0.0)))


SETTINGS = tuple(field.name for field in dataclasses.fields(MatrixSettings))
COMPILER = ("num_warps", "num_stages")
"""Settings that ``triton.Config`` has a place of its own for."""


def by_autotune(
    problem: GpuProblem, count: int | None = None, do_bench: Bench | None = None
) -> Options:
    """What ``triton.autotune`` chooses among the first ``count`` candidates of our search, or all."""
    import triton

    default = dataclasses.asdict(problem.subject.work.space()[0])
    others = [each.options for each in problem.candidates if each.options.keys() == default.keys()]
    configs = [
        triton.Config(
            {name: value for name, value in options.items() if name not in COMPILER},
            **{name: options[name] for name in COMPILER},
        )
        for options in [default, *others][:count]
    ]
    problem.check(problem.candidates[0])  # so that there are numbers to multiply
    with problem.bench.on_device():
        kernel = triton.autotune(configs, key=[], do_bench=do_bench)(Kernel(problem))
        kernel.run()
    best = kernel.best_config.all_kwargs()
    return {name: best[name] for name in SETTINGS}


def by_clock(problem: GpuProblem) -> Options:
    """The same in the interpreter, which Triton's own benchmark does not know: few candidates, once each."""

    def do_bench(call: Callable[[], object], quantiles: Sequence[float]) -> list[float]:
        begun = time.perf_counter()
        call()
        return [time.perf_counter() - begun] * len(quantiles)

    return by_autotune(problem, DRY_CANDIDATES, do_bench)


# --- the whole step, and what it comes to ---------------------------------------------------------------


def whole_step(engine: Engine, problem: Problem, clock: Clock) -> Prepared:
    """The seconds that tuning the whole step takes, into a store of its own."""
    if not clock.is_cuda:
        raise Left("the step that is tuned would take minutes here")
    ours = engine.trainer(problem, tune="off")
    with tempfile.TemporaryDirectory() as folder, config.using(tuning=folder):
        begun = time.perf_counter()
        bench = bench_of(ours, problem.batch)
        tune_step(
            bench,
            lambda variants: engine.trainer(problem, tune=variants),
            problem.batch,
            Store.of(bench.device),
            effort="quick",
        )
        return Prepared(lambda: None, seconds=[time.perf_counter() - begun])


def means(rows: Sequence[Row]) -> list[Row]:
    """Geometric means over the launches that all contenders were timed on; a row each."""
    times: dict[str, dict[str, float]] = {}
    for row in rows:
        launch, _, contender = row.name.rpartition(": ")
        if row.median and contender in CONTENDERS:
            times.setdefault(launch, {})[contender] = row.median
    whole = [found for found in times.values() if len(found) == len(CONTENDERS)]
    if not whole:
        return []
    return [
        Row(
            mean_name(contender),
            [math.exp(sum(math.log(found[contender]) for found in whole) / len(whole))],
        )
        for contender in CONTENDERS
    ]
