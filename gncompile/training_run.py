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
from typing import TYPE_CHECKING, Any

import torch

from .data import Batches, DataSplit, load
from .environment import environment, table
from .errors import ModelFileError, expected_got, message
from .frontends.model_file import ModelFile, load_model_file
from .output_bias import set_output_bias
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .optimiser.trainer import Trainer

SHOWN = 12  # images in the picture of reconstructions
EVALUATED = 5000  # training samples in the reported training loss


class Stopped(KeyboardInterrupt):
    """The user interrupted the training; the step in progress was finished first."""


def compile_file(file: ModelFile, seed: int | None = None, **options: Any) -> Trainer:
    """The trainer of a model file; ``options`` go before those in the file."""
    from .optimiser.compile import compile as compile_model

    model = file.build(seed)
    training = file.training
    settings = {
        **{"method": training.method, "tune": training.tune},
        **{**trainer_options(file), **options},
    }
    return compile_model(
        model,
        loss=file.loss,
        example_inputs=example(file, training.batch_size),
        seed=file.training.seed if seed is None else seed,
        dtype=file.dtype,
        **settings,
    )


def trainer_options(file: ModelFile) -> dict[str, Any]:
    """The ``[training.options]`` of a model file as ``gncompile.compile`` takes them."""
    return {name: _tuples(value) for name, value in file.training.options.items()}


def example(file: ModelFile, samples: int = 2) -> torch.Tensor:
    """Inputs of the right shape and dtype, to trace the network with."""
    return torch.zeros(samples, file.input_size, dtype=file.dtype)


@dataclass
class TrainingRun:
    """A compiled model file, its data, and its folder."""

    file: ModelFile
    folder: RunFolder
    trainer: Trainer
    data: DataSplit
    batches: Batches
    progress: bool = True
    _stop: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def start(
        cls,
        model_file: Path,
        folder: Path,
        *,
        updates: int | None = None,
        epochs: int | None = None,
        seed: int | None = None,
        method: str | None = None,
        checkpoint_every: int = 20,
        progress: bool = True,
    ) -> TrainingRun:
        """A fresh run; arguments that are not None go before the model file."""
        file = load_model_file(model_file)
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
        }
        run_folder = RunFolder.create(folder, model_file, settings)
        batches = Batches(data.train_x, data.train_y, training.batch_size, seed)
        return cls(file, run_folder, trainer, data, batches, progress)

    @classmethod
    def resume(cls, folder: Path, progress: bool = True) -> TrainingRun:
        """A run as its last checkpoint left it."""
        from .optimiser.trainer import Trainer

        run_folder = RunFolder.open(folder)
        settings = run_folder.settings
        file = load_model_file(run_folder.model_file, base=settings["base"])
        trainer = Trainer.resume(run_folder.checkpoint, file.build(settings["seed"]))
        data = load_data(file)
        run_folder.rewind(trainer.updates)
        batches = Batches(data.train_x, data.train_y, file.training.batch_size, settings["seed"])
        return cls(file, run_folder, trainer, data, batches, progress)

    @property
    def updates(self) -> int:
        """Updates the whole run makes."""
        settings = self.folder.settings
        return int(settings["updates"] or settings["epochs"] * len(self.batches))

    def train(self) -> None:
        """Go on to the end of the run, write its pictures and report; :class:`Stopped` on SIGINT."""
        remaining = self.updates - self.trainer.updates
        try:
            if remaining > 0:
                self._fit(remaining)
        finally:
            self.folder.plot_loss()
        self.trainer.save(self.folder.checkpoint)
        self.draw_reconstructions()
        self.folder.write_report(self.report())
        self.trainer.report(self.folder.derivation, self.file.name)

    def _fit(self, updates: int) -> None:
        with _sigint_sets(self._stop):
            self.trainer.fit(
                self.batches,
                updates=updates,
                validation=(self.data.validation_x, self.data.validation_y),
                callbacks=[self._after_step],
                progress=self.progress,
                checkpoint=self.folder.checkpoint,
                checkpoint_every=self.folder.settings["checkpoint_every"],
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
        pictures = [
            f"![{name}]({name}.png)"
            for name in ("loss", "reconstructions")
            if (self.folder.path / f"{name}.png").exists()
        ]
        return "\n\n".join(
            [
                f"# {self.file.name}",
                _block(table(results)),
                *pictures,
                "## Compiled model",
                _block(self.trainer.summary()),
                "## Derivation",
                "As linked pages: [derivation/index.html](derivation/index.html).",
                _block(self.trainer.explain()),
                "## Environment",
                _block(table(environment())),
                "",
            ]
        )


def load_data(file: ModelFile) -> DataSplit:
    """The data of a model file; :class:`~gncompile.errors.ModelFileError` unless the network fits them."""
    data = load(file.data).to(file.dtype)
    if data.train_x.shape[1] != file.input_size:
        raise ModelFileError(
            message(
                "the network does not fit the data\n"
                + expected_got(f"{data.train_x.shape[1]} inputs", f"{file.input_size}"),
                where=str(file.path),
                instead="change the first of layers, or input_size, in [network]",
            )
        )
    return data


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```"


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
