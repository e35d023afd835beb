"""``gncompile tune``: tune a model file at its shapes, and look after the store."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..base.tables import count
from ..base.tables import table as aligned
from ..errors import GncompileError
from ..frontends.model_file import load_model_file
from ..training.trainer import Trainer
from ..tuning.device import require_kind
from ..tuning.problem import Variants, shown, sizes
from ..tuning.search import check_effort, line
from ..tuning.store import Entry, Store, Unreadable, folder, import_file, parse
from ..tuning.tuner import BUDGETS, Tuned, bench_of, tune_step
from .compile_file import compile_file
from .device import CPU, device_of

Print = Callable[[str], None]
LISTED = 500
"""Settings of a store that are printed."""


def seconds(text: str) -> float:
    """``60s``, ``2m`` or a plain number of seconds; ``GncompileError`` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text.strip())
    value = float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"] if found else 0.0
    if value <= 0:
        raise GncompileError(f"the budget {text!r} is no time", instead="give it as 60s, 2m or 1h")
    return value


def check(effort: str, budget: str | None, kind: str | None) -> None:
    """Refuse wrong words of the command line, also where the command does not come to use them."""
    check_effort(effort, 1.0)
    if kind is not None:
        require_kind(kind)
    if budget is not None and seconds(budget) and not budget.strip()[-1].isalpha():
        raise GncompileError(
            f"the budget {budget!r} has no unit",
            instead=f"give it as {budget.strip()}s or {budget.strip()}m",
        )


def tune_file(
    path: Path,
    effort: str,
    budget: str | None,
    progress: bool,
    say: Print,
    data_root: Path | None = None,
    device: str = CPU,
) -> bool:
    """Tune what a model file compiles to; whether the search came to its end.

    Everything is measured anew on ``device``, whatever the store holds.
    """
    file, place = load_model_file(path, data_root=data_root), device_of(device)
    samples = file.batch_size

    def make(variants: Variants) -> Trainer:
        return compile_file(file, device=place, tune=variants)

    trainer = make({})
    bench = bench_of(trainer, samples)
    if not bench.keys:
        say(f"nothing to choose among for {file.name} with the backend {trainer.backend!r}")
        return True
    store = Store.of(bench.device)
    with bar("tune", len(set(bench.keys.values())), progress) as advance:
        tuned = tune_step(
            bench,
            make,
            samples,
            store,
            effort=effort,
            budget=BUDGETS.get(effort, 0.0) if budget is None else seconds(budget),
            report=lambda outcome: advance(line(outcome)),
        )
    say(f"{file.name}, batches of {samples}, on {store.device}\n")
    if tuned.found.outcomes:
        say(table(tuned) + "\n")
    say(verdict(tuned))
    say("\n".join([f"settings: {store.path}", *store.notes]))
    return not tuned.found.interrupted


def table(tuned: Tuned) -> str:
    """A line for every problem: default and chosen, with their times."""
    rows = [["operation", "shape", "dtype", "uses", "default ms", "chosen", "ms", "ratio"]]
    for o in tuned.found.outcomes:
        key = o.key
        rows.append(
            [
                *(key.kernel, sizes(key.shape), key.dtype, str(o.uses)),
                f"{o.default_seconds * 1e3:.3f}",
                shown(o.options),
                f"{o.seconds * 1e3:.3f}",
                f"{o.default_seconds / o.seconds:.2f}",
            ]
        )
    return aligned(rows, right=(3, 4, 6, 7))


def verdict(tuned: Tuned) -> str:
    """What became of the whole step, and of the problems that were not reached."""
    lines = []
    if tuned.found.unreached:
        lines.append(f"{len(tuned.found.unreached)} not reached within the budget; defaults kept")
    if tuned.found.interrupted:
        lines.append("interrupted: what was found is kept; the whole step was not compared")
    elif tuned.comparison is None:
        lines.append("the defaults are the best found: the step stays as it is")
    else:
        lines.append(f"whole step: {tuned.comparison}")
        if not tuned.comparison.kept:
            lines.append("the defaults are kept")
    return "\n".join(lines)


@contextmanager
def bar(task: str, total: int, active: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar with a text for the last one done on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not (active and console.is_terminal):
        yield lambda text: None
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        added = progress.add_task(task, total=total, text="")
        yield lambda text: progress.update(added, advance=1, text=text)


# --- The store ------------------------------------------------------------------------------------------


def list_stores(say: Print) -> None:
    """Every store in the folder with its settings, and the notes of those that cannot be used."""
    paths = sorted(folder().glob("*.json"))
    if not paths:
        say(f"no tuned settings in {folder()}")
    for path in paths:
        try:
            content = parse(path)
        except Unreadable as error:
            say(f"{path}: the file {error}")
            continue
        store = Store(path, content.device)
        say(f"{path}\n{content.device}")
        rows = [["operation", "shape", "dtype", "chosen", "effort", ""]]
        rows += [
            [
                *(e.kernel, sizes(e.shape), e.dtype, shown(e.options), e.effort),
                "" if store.current(e) else "stale: " + ", ".join(_pairs(e)),
            ]
            for e in content.entries[:LISTED]
        ]
        say(aligned(rows))
        if len(content.entries) > LISTED:
            say(f"and {len(content.entries) - LISTED} more; --explain OPERATION shows those of one")


def explain(kernel: str, kind: str, say: Print) -> None:
    """Every candidate that was measured for the operation ``kernel``, by shape, on the device of a kind."""
    store = Store.open(kind)
    entries = [e for e in store.entries if e.kernel == kernel]
    if not entries:
        known = ", ".join(sorted({e.kernel for e in store.entries})) or "none"
        raise GncompileError(
            f"no tuned settings for {kernel!r}",
            where=str(store.path),
            instead=f"tune a model first; the operations there are: {known}",
        )
    if len(entries) > LISTED:
        say(f"the first {LISTED} of {len(entries)} shapes")
    for e in entries[:LISTED]:
        say(f"{e.key}, {e.effort}, {', '.join(_pairs(e))}: {shown(e.options)}")
        if e.note:
            say(f"  {e.note}")
        rows = [["candidate", "predicted", "measured", ""]]
        for t in e.trials:
            measured = "" if t.seconds is None else f"{t.seconds * 1e3:.3f} ms"
            why = f"rejected: {t.rejected}" if t.rejected else ""
            why = "chosen" if t.options == e.options else why
            rows.append([shown(t.options), f"{t.predicted * 1e3:.3f} ms", measured, why])
        say(aligned(rows, right=(1, 2)))


def _pairs(e: Entry) -> list[str]:
    return [f"{name} {version}" for name, version in e.versions.items()]


def export_store(path: Path, kind: str, say: Print) -> None:
    """Write the settings of the device of a kind to ``path``."""
    store = Store.open(kind)
    if not store.entries:
        raise GncompileError(
            "there are no tuned settings to export",
            where=str(store.path),
            instead="\n".join(store.notes) or "gncompile tune FILE makes some",
        )
    store.export(path)
    say(f"{count(len(store.entries), 'setting')}: {path}")


def import_store(path: Path, say: Print) -> None:
    """Merge an exported file into the store of its device."""
    store = import_file(path)
    say("\n".join(store.notes) or f"{count(len(store.entries), 'setting')}: {store.path}")


def clear_store(kind: str, say: Print) -> None:
    """Delete the settings of the device of a kind."""
    store = Store.open(kind)
    store.clear()
    say(f"cleared: {store.path}")
