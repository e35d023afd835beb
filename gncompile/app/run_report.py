"""``report.md`` of a run: some ten lines of results, a picture, and where the derivation is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.environment import environment, table
from ..base.tables import count
from ..base.untrusted import fenced, in_markdown
from ..data.data_spec import DataSplit
from ..errors import visible
from ..losses.targets import mapped, tensors_of
from ..training.early_stop import VALIDATION_LOSS
from ..training.metrics import higher_is_better
from .evaluation import evaluated, outputs_of, predicted
from .loaded_run import Run
from .run_folder import PICTURES, RunFolder
from .run_pictures import (
    MOST_POINTS,
    draw_confusion,
    draw_loss,
    draw_predicted,
    draw_reconstructions,
)

EVALUATED = 5000
"""Training samples in the reported training loss."""
SHOWN = 12
"""Images in the picture of reconstructions."""


def report(run: Run, data: DataSplit) -> str:
    """Results, pictures, and where to read on; as Markdown."""
    weights = run.folder.weights.name
    where = (
        f"The parameters that have these losses are in [{weights}]({weights}), and in "
        "`gncompile.load(RUN).module`."
    )
    pages = "What was derived and compiled, and what a step costs"
    return page(run.folder, run.file.name, results(run, data), pages, where)


def page(folder: RunFolder, name: str, told: dict[str, str], pages: str, *more: str) -> str:
    """A report: what is ``told`` in a table, ``more`` paragraphs, pictures, and where to read on."""
    pictures = [
        f"![{Path(each).stem}]({each})" for each in PICTURES if (folder.path / each).exists()
    ]
    return "\n\n".join(
        [
            f"# {in_markdown(name)}",
            fenced(visible(table(told))),
            *more,
            *pictures,
            "## Derivation",
            f"{pages}: [derivation/index.html](derivation/index.html).",
            "## Environment",
            fenced(table(environment())),
            "",
        ]
    )


def results(run: Run, data: DataSplit) -> dict[str, str]:
    """What to look at first, each under a short name."""
    training = run.file.training
    samples, held_out = samples_of(data.train_x), samples_of(data.validation_x)
    shown = min(samples, EVALUATED)
    first = tuple(mapped(lambda each: each[:shown], part) for part in (data.train_x, data.train_y))
    learnt = evaluated(run.module, run.loss, *first)
    held = evaluated(run.module, run.loss, *data.validation, run.metrics) if data.validation else {}
    parameters = sum(parameter.numel() for parameter in run.module.parameters())
    method = run.trainer.settings.method
    shown_method = method if isinstance(method, str) else "methods by layer"
    return {
        "data": f"{Path(run.file.data.name).name}, {samples} samples, {held_out or 'none'} for validation",
        "network": f"{parameters} parameters; loss {run.loss.name}"
        + (", standardised" if run.file.in_units else ""),
        "training": f"{shown_method}, batches of {run.file.batch_size}, {training.dtype}"
        + run.started.elsewhere,
        **_history(run),
        f"loss, first {shown} training samples": f"{learnt['loss']:.6g}",
        **{
            f"{name}, {held_out} validation samples": f"{value:.6g}" for name, value in held.items()
        },
    }


def _history(run: Run) -> dict[str, str]:
    """Updates, the best of them, and the time they took."""
    records = run.folder.history()
    if not records:
        return {"updates": "0"}
    last = records[-1]
    speeds = [(r.get("samples") or 0, r.get("samples_per_second") or 0) for r in records]
    seconds = sum(samples / speed for samples, speed in speeds if speed)
    told = {
        "updates": f"{last['update']}, in {count((last.get('epoch') or 0) + 1, 'epoch')}",
        "ended": run.started.ended or "not yet",
        "time": f"{seconds:.3g} s of updates",
    }
    stop = run.file.training.early_stop
    monitor = stop.monitor if stop else VALIDATION_LOSS
    validated = [r for r in records if r.get(monitor) is not None]
    if validated:
        pick = max if higher_is_better(monitor) else min
        best = pick(validated, key=lambda record: float(record[monitor]))
        told["best update"] = f"{best['update']}, {monitor} {best[monitor]:.6g}"
    return told


def samples_of(x: Any) -> int:
    """Rows of inputs, a tensor or several."""
    return len(tensors_of(x)[0])


def draw(run: Run, data: DataSplit) -> None:
    """The pictures that the report shows: the loss, and what the network makes of the validation data."""
    folder, schema = run.folder.path, run.schema
    draw_loss(run.folder.history(), folder / "loss.png")
    y = tensors_of(data.validation_y)[0]
    if data.validation is None or (schema.target == "input" and len(data.shape) != 2):
        return
    count = SHOWN if schema.target == "input" else MOST_POINTS
    x, y = mapped(lambda each: each[:count], data.validation_x), y[:count]
    outputs = outputs_of(run.module, x)
    if schema.classes is not None:
        found = outputs.argmax(dim=1)
        draw_confusion(found.numpy(), y.numpy(), schema.classes, folder / "confusion.png")
        return
    outputs = predicted(run.loss, outputs)
    if schema.target == "input":
        draw_reconstructions(y, outputs, data.shape, folder / "reconstructions.png")
    else:
        true = {name: column.numpy() for name, column in zip(schema.output_names, y.T, strict=True)}
        draw_predicted(schema.decode(outputs), true, folder / "predicted.png")
