"""Train what a model file describes, in a run folder that can be continued at any time."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..base.environment import environment, table
from ..base.files import atomic_path
from ..base.untrusted import fenced, in_markdown
from ..data.data_sets import Batches, DataSplit
from ..errors import CheckpointError, GncompileError
from ..frontends.model_data import load_data
from ..frontends.model_file import ModelFile, load_model_file
from ..frontends.model_schema import Seed
from .output_bias import set_output_bias
from .run_folder import RunFolder

if TYPE_CHECKING:
    from ..training.trainer import Trainer

SHOWN = 12  # images in the picture of reconstructions
EVALUATED = 5000  # training samples in the reported training loss


Count = Annotated[int, Field(gt=0)]


class Started(BaseModel):
    """How a run was started, as its folder keeps it.

    Paths of the model file are relative to ``base`` and may lead into ``data_root``; ``data`` is the digest
    of what was read there. It has to be the same when the run goes on, so a folder of somebody else cannot
    have other files trained on.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    base: str
    updates: Count | None
    epochs: Count | None
    seed: Seed
    checkpoint_every: Count
    data: str
    data_root: str | None

    @classmethod
    def of(cls, folder: RunFolder) -> Started:
        """What ``run.json`` says; :class:`~gncompile.errors.CheckpointError` unless it makes sense."""
        try:
            started = cls.model_validate(folder.settings)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            found = f"run.json is damaged at {'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise CheckpointError(
                found, where=str(folder.path), instead="start the run again"
            ) from None
        if (started.updates is None) == (started.epochs is None):
            raise CheckpointError("run.json does not say how long to train", where=str(folder.path))
        return started


class Stopped(KeyboardInterrupt):
    """The user interrupted the training; the step in progress was finished first."""


def compile_file(file: ModelFile, seed: int | None = None, **options: Any) -> Trainer:
    """The trainer of a model file; ``options`` go before those in the file."""
    from .compile import compile as compile_model

    model = file.build(seed)
    training = file.training
    settings = {
        **{"method": training.method, "tune": training.tune},
        **{**trainer_options(file), **options},
    }
    return compile_model(
        model,
        loss=file.loss,
        example_inputs=file.example(file.batch_size),
        seed=file.training.seed if seed is None else seed,
        dtype=file.dtype,
        **settings,
    )


def trainer_options(file: ModelFile) -> dict[str, Any]:
    """The ``[training.options]`` of a model file as ``gncompile.compile`` takes them."""
    return {name: _tuples(value) for name, value in file.training.options.items()}


@dataclass
class TrainingRun:
    """A compiled model file, its data, and its folder."""

    file: ModelFile
    folder: RunFolder
    started: Started
    trainer: Trainer
    data: DataSplit
    batches: Batches
    progress: bool = True
    fresh: bool = False
    """Whether the folder was made for this training, and goes where nothing was learnt."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def start(
        cls,
        model_file: Path,
        folder: Path | None,
        *,
        updates: int | None = None,
        epochs: int | None = None,
        seed: int | None = None,
        method: str | None = None,
        checkpoint_every: int = 20,
        progress: bool = True,
        data_root: Path | None = None,
    ) -> TrainingRun:
        """A fresh run in ``folder``, by default ``runs/NAME``; arguments but None go before the file.

        The folder is made last, and with a checkpoint: whatever can be found wrong before the first update
        leaves none behind, and whenever a run is killed it can be resumed.
        """
        file = load_model_file(model_file, data_root=data_root)
        data = load_data(file)
        training = file.training
        seed = training.seed if seed is None else seed
        if updates is None and epochs is None:
            updates, epochs = training.updates, training.epochs
        trainer = compile_file(file, seed, **({} if method is None else {"method": method}))
        if training.output_bias == "mean":
            set_output_bias(file, trainer.model, data.train_y)
        settings = {
            **{"updates": updates, "epochs": epochs, "seed": seed},
            "checkpoint_every": checkpoint_every,
            "data": data.digest(),
            "data_root": None if data_root is None else str(data_root.absolute()),
        }
        batches = Batches(data.train_x, data.train_y, training.batch_size, seed)
        how = model_file, settings, file.content, lambda made: trainer.save(made.checkpoint)
        run_folder = (
            RunFolder.create_in(Path("runs"), file.name, *how)
            if folder is None
            else RunFolder.create(folder, *how)
        )
        return cls(
            file, run_folder, Started.of(run_folder), trainer, data, batches, progress, fresh=True
        )

    @classmethod
    def resume(
        cls, folder: Path, progress: bool = True, data_root: Path | None = None
    ) -> TrainingRun:
        """A run as its last checkpoint left it; ``data_root`` goes before the one it was started with."""
        from ..training.trainer import Trainer

        run_folder = RunFolder.open(folder)
        run_folder.hold()
        try:
            started = Started.of(run_folder)
            root = started.data_root if data_root is None else data_root
            file = load_model_file(run_folder.model_file, started.base, root)
            data = load_data(file)
            if data.digest() != started.data:
                raise CheckpointError(
                    "the data are not those that the run was started with",
                    where=f"{file.data.name}, which {run_folder.path} names",
                    instead="put them back, or start a new run",
                )
            trainer = Trainer.resume(run_folder.checkpoint, file.build(started.seed))
            run_folder.rewind(trainer.updates)
        except BaseException:
            run_folder.release()
            raise
        batches = Batches(data.train_x, data.train_y, file.training.batch_size, started.seed)
        return cls(file, run_folder, started, trainer, data, batches, progress)

    @property
    def updates(self) -> int:
        """Updates the whole run makes."""
        return self.started.updates or (self.started.epochs or 0) * len(self.batches)

    def train(self) -> None:
        """Go on to the end of the run, write its results; :class:`Stopped` on SIGINT.

        The weights written are those that the report speaks of.
        """
        try:
            remaining = self.updates - self.trainer.updates
            if remaining > 0:
                self._learn(remaining)
            self.trainer.save(self.folder.checkpoint)
            self.trainer.finish()
            self.save_weights()
            self.draw_reconstructions()
            self.folder.write_report(self.report())
            self.trainer.report(self.folder.own_derivation(), self.file.name)
        finally:
            self.folder.release()

    def _learn(self, updates: int) -> None:
        try:
            self._fit(updates)
        except GncompileError:
            if self.fresh and not self.trainer.updates:
                self.folder.discard()
                raise
            self.folder.plot_loss()
            raise
        except KeyboardInterrupt:
            self.folder.plot_loss()
            raise
        self.folder.plot_loss()

    def save_weights(self) -> Path:
        """Write the model's parameters by name, as ``model.load_state_dict`` takes them."""
        from safetensors.torch import save_file

        tensors = {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.trainer.model.state_dict().items()
        }
        with atomic_path(self.folder.weights) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        return self.folder.weights

    def _fit(self, updates: int) -> None:
        with _sigint_sets(self._stop):
            self.trainer.fit(
                self.batches,
                updates=updates,
                validation=(self.data.validation_x, self.data.validation_y),
                callbacks=[self._after_step],
                progress=self.progress,
                checkpoint=self.folder.checkpoint,
                checkpoint_every=self.started.checkpoint_every,
            )

    def _after_step(self, stats: Any) -> None:
        record = dataclasses.asdict(stats) if dataclasses.is_dataclass(stats) else dict(stats)  # type: ignore[arg-type]
        self.folder.append(record)
        if self._stop.is_set():
            self.trainer.save(self.folder.checkpoint)
            raise Stopped

    def draw_reconstructions(self) -> Path | None:
        """The picture of reconstructions, if the network is an autoencoder of images."""
        if self.file.data.target != "input" or len(self.data.shape) != 2:
            return None
        originals = self.data.validation_x[:SHOWN]
        outputs = self.trainer.predict(originals)
        if self.file.loss == "bce_with_logits":
            outputs = torch.sigmoid(outputs)
        return self.folder.plot_reconstructions(originals, outputs, self.data.shape)

    def report(self) -> str:
        """Results, pictures, the compiled model and its derivation, versions; as Markdown."""
        train = self.data.train_x[:EVALUATED], self.data.train_y[:EVALUATED]
        validation = self.data.validation_x, self.data.validation_y
        results = {
            "updates": str(self.trainer.updates),
            f"loss, first {len(train[0])} training samples": f"{self.trainer.evaluate(*train):.6g}",
            f"loss, {len(validation[0])} validation samples": f"{self.trainer.evaluate(*validation):.6g}",
        }
        weights = self.folder.weights.name
        pictures = [
            f"![{name}]({name}.png)"
            for name in ("loss", "reconstructions")
            if (self.folder.path / f"{name}.png").exists()
        ]
        return "\n\n".join(
            [
                f"# {in_markdown(self.file.name)}",
                fenced(table(results)),
                f"The parameters that have these losses are in [{weights}]({weights}).",
                *pictures,
                "## Compiled model",
                fenced(self.trainer.summary()),
                "## Derivation",
                "As linked pages: [derivation/index.html](derivation/index.html).",
                fenced(self.trainer.explain()),
                "## Environment",
                fenced(table(environment())),
                "",
            ]
        )


def _tuples(value: Any) -> Any:
    """TOML's arrays as the tuples that options are."""
    if isinstance(value, Mapping):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@contextmanager
def _sigint_sets(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT sets ``stop``; a second one interrupts at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
