"""From what ``compile`` is given for ``tune`` to the variants of a program, measured or looked up."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from ..base.settings import Settings
from ..emit.torch_operations import Options
from ..errors import CompileError, nearest
from ..program.costs import columns_within
from ..program.step_program import StepProgram
from ..runtime.executable import require_triton
from ..runtime.first_process import from_first
from ..runtime.processes import Processes
from .cpu import CpuBench
from .cpu import keys as cpu_keys
from .problem import DEFAULT, Bench, Key, Variants, shown
from .search import EFFORTS, Found, Outcome, check_effort, search
from .step_check import StepComparison, compare
from .store import Store, TuningWarning, entry_of

if TYPE_CHECKING:
    from ..training.trainer import Trainer

Word = Literal["off", "cached", "quick", "full"]
WORDS: tuple[Word, ...] = get_args(Word)
Tune = str | os.PathLike[str] | Mapping[str, Options]
"""A word, a pinned file of settings (``.json``), or the variants themselves, as a checkpoint holds them."""

BUDGETS = {"quick": 60.0, "full": 600.0}
"""Seconds that tuning may take if nothing is said."""
SEARCHED = 0.6
"""Share of the budget for the search; the rest is for the whole step."""

Make = Callable[[Variants], "Trainer"]
"""Compiles the trainer again with given variants, from equal states."""


@dataclass(frozen=True)
class Tuned:
    """What tuning found: the search, the variants it leads to, and the whole step with and without them."""

    found: Found
    variants: Variants
    comparison: StepComparison | None
    """None if there was nothing to compare, or the search was interrupted."""


def tunable(
    program: StepProgram,
    settings: Settings,
    samples: int,
    dtype: torch.dtype,
    *,
    backend: str,
    device: torch.device,
    precision: str,
) -> Bench:
    """What may be tuned of a program for batches of ``samples``: Triton's launches, torch's calls on a CPU.

    Raises ``CompileError`` where the Triton backend cannot run.
    """
    dims = sizes_of(program, settings, samples, dtype)
    if backend == "triton":
        require_triton(device)
        from .gpu import GpuBench

        return GpuBench(program, dims, dtype, precision, device)
    if backend == "torch" and device.type == "cpu":
        return CpuBench(cpu_keys(program, dims, dtype))
    return CpuBench({})


def bench_of(trainer: Trainer, samples: int) -> Bench:
    """What may be tuned of a trainer's step for batches of ``samples``."""
    return tunable(
        trainer.program,
        trainer.settings,
        samples,
        trainer.dtype,
        backend=trainer.backend,
        device=trainer.device,
        precision=trainer.precision,
    )


def sizes_of(
    program: StepProgram, settings: Settings, samples: int, dtype: torch.dtype
) -> dict[str, int]:
    """The dimensions of a program for batches of ``samples``."""
    chunk = columns_within(program, samples, dtype.itemsize, settings.memory_budget)
    return {"N": samples, **settings.rows(samples), "S": chunk}


def variants_for(
    tune: Tune, bench: Bench, make: Make, samples: int, processes: Processes | None = None
) -> Variants:
    """The variants of the instructions that ``bench`` has keys of, by the word, file or mapping ``tune``.

    ``"quick"`` and ``"full"`` measure what the store does not know, and keep it. Of several
    ``processes`` a word but ``"off"`` is a collective call: rank 0 reads and measures, all take its choice.
    Says what is ignored as a :class:`~gncompile.tuning.store.TuningWarning`; raises ``CompileError`` for an
    unknown word, and ``GncompileError`` for a file that cannot be used.
    """
    if isinstance(tune, Mapping):
        return _checked(tune, bench) if tune else {}
    if not isinstance(tune, str) or tune.endswith(".json"):
        return from_store(Store.pin(Path(tune)), bench)
    if tune not in WORDS:
        raise CompileError(
            f"unknown tune={tune!r}. {nearest(tune, WORDS)}".rstrip(),
            instead=f"use one of {', '.join(WORDS)}, or a .json file of gncompile tune --export",
        )
    if tune == "off":
        return {}
    return from_first(
        processes,
        lambda: _by_word(tune, bench, make, samples),
        instead="mend what went wrong on rank 0, or compile with tune='off'",
    )


def _by_word(word: str, bench: Bench, make: Make, samples: int) -> Variants:
    """From this machine's store, after measuring what it does not know if the word is an effort."""
    store = Store.of(bench.device)
    if word in EFFORTS:
        known = {name for name, key in bench.keys.items() if _known(store, key, bench, word)}
        if known < bench.keys.keys():
            tune_step(bench, make, samples, store, effort=word, known=known)
    return from_store(store, bench)


def from_store(store: Store, bench: Bench) -> Variants:
    """What a store knows of a bench's settings, where it is not the default; warns of what is ignored."""
    if store.entries:  # without any the keys, which cost an emission of the step, are of no use
        store.note_stale(bench.keys.values())
    store.warn()
    if not store.entries:
        return {}
    entries = {name: store.look_up(key, bench.allowed) for name, key in bench.keys.items()}
    return {name: e.options for name, e in entries.items() if e is not None and e.options}


def _known(store: Store, key: Key, bench: Bench, effort: str) -> bool:
    """Whether the store has this very shape, measured with no less effort."""
    entry = store.look_up(key, bench.allowed)
    return entry is not None and entry.key == key and entry.effort in ("full", effort)


def tune_step(
    bench: Bench,
    make: Make,
    samples: int,
    store: Store,
    *,
    known: AbstractSet[str] = frozenset(),
    effort: str = "quick",
    budget: float | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> Tuned:
    """Measure, keep every choice in the store as it is made, then compare the whole step.

    What is ``known`` by name is neither measured nor chosen.
    If the step with the choices disagrees with the default one, or is slower, the defaults are stored in
    their place; the outcomes returned are still the measured ones. An interrupted search is not compared;
    its choices were checked one by one.
    """
    budget = BUDGETS.get(effort, 0.0) if budget is None else budget
    check_effort(effort, budget)
    end = time.perf_counter() + budget

    wanted = {name: key for name, key in bench.keys.items() if name not in known}

    def keep(outcome: Outcome) -> None:
        store.add([entry_of(outcome, effort, bench.device)])
        report(outcome)

    found = search(bench.problems(wanted), effort, SEARCHED * budget, keep)
    chosen = {outcome.key: outcome.options for outcome in found.outcomes}
    variants = {name: chosen[key] for name, key in wanted.items() if chosen.get(key)}
    if found.interrupted or not variants:
        return Tuned(found, variants, None)
    try:
        comparison = compare(make({}), make(variants), samples, end)
    except KeyboardInterrupt:
        found.interrupted = True
        return Tuned(found, variants, None)
    if comparison.kept:
        return Tuned(found, variants, comparison)
    why = "was slower" if comparison.agrees else "made another update"
    reverted = [
        replace(
            o, options=DEFAULT, note=f"{shown(o.options)} measured best, but the whole step {why}"
        )
        for o in found.outcomes
        if o.options
    ]
    store.add([entry_of(outcome, effort, bench.device) for outcome in reverted])
    return Tuned(found, {}, comparison)


def _checked(given: Mapping[str, Options], bench: Bench) -> Variants:
    """Those of the given variants that this program has; warns of the others."""
    unknown = _unknown(given, bench)
    if unknown:
        warnings.warn(
            f"this program has no such variants of {', '.join(unknown)}; they are computed in the default "
            "way, which may round otherwise",
            TuningWarning,
            stacklevel=2,
        )
    return {name: options for name, options in given.items() if name not in unknown}


def _unknown(given: Mapping[str, Options], bench: Bench) -> list[str]:
    """Names of the given variants that this program does not have."""
    return [
        name
        for name, options in given.items()
        if name not in bench.keys or not bench.allowed(bench.keys[name].kernel, options)
    ]
