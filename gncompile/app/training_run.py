"""Train what a model file describes, in a run folder that can be continued at any time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..base.files import atomic_path
from ..data.data_sets import Batches, DataSplit
from ..frontends.model_data import load_data
from ..frontends.model_file import ModelFile, load_model_file
from ..runtime.first_process import from_first
from ..runtime.processes import Processes, current
from ..training.early_stop import EarlyStop
from ..training.loggers import CSVLogger, TensorBoardLogger
from .compile_file import compile_file
from .device import CPU, device_of, resident
from .followed_folder import FollowedFolder, kind_of_folder
from .interrupts import Stopped, signals_set
from .loaded_run import Run
from .output_bias import set_output_bias
from .run_folder import RunFolder
from .run_pictures import draw_loss
from .run_report import draw, report
from .started import Started

if TYPE_CHECKING:
    import torch

    from ..frontends.pde_file import PdeFile
    from ..training.records import History, Record
    from ..training.trainer import Trainer


def new_folder(folder: Path | None, name: str, *how: Any) -> RunFolder:
    """A run folder, by default ``runs/NAME``; ``how`` as :meth:`RunFolder.create` takes it.

    The first of several processes makes it, a collective call.
    """
    made: list[RunFolder] = []

    def make() -> Path:
        if folder is None:
            made.append(RunFolder.create_in(Path("runs"), name, *how))
        else:
            made.append(RunFolder.create(folder, *how))
        return made[0].path

    path = from_first(current(), make)
    return made[0] if made else FollowedFolder(path)


@dataclass(kw_only=True)
class FolderRun:
    """A compiled trainer, its batches, and the folder that it is trained into."""

    file: ModelFile | PdeFile
    folder: RunFolder
    started: Started
    trainer: Trainer
    batches: Batches
    progress: bool = True
    fresh: bool = False
    """Whether the folder was made for this training, and goes where nothing was learnt."""
    until: int | None = None
    """Updates after which this training stops, where that is before the end of the run."""
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
        device: str = CPU,
    ) -> Self:
        """A fresh run in ``folder``, by default ``runs/NAME``; arguments but None go before the file.

        The folder is made last, and with a checkpoint: whatever can be found wrong before the first update
        leaves none behind, and whenever a run is killed it can be resumed.
        """
        place = device_of(device)
        file = cls._read(model_file, None, data_root)
        if folder is not None:
            RunFolder(folder).require_free()  # said before anything takes long
        asked = {"updates": updates, "epochs": epochs, "seed": seed, "method": method}
        seed = file.training.seed if seed is None else seed
        own = cls._compiled(file, seed, place, **({} if method is None else {"method": method}))
        settings = {
            **cls._settings(file, updates, epochs, data_root),
            **{"seed": seed, "checkpoint_every": checkpoint_every, "asked": asked},
            "device": device,
        }

        def fill(made: RunFolder) -> None:
            cls._fill(made, file, own["trainer"])

        made = new_folder(folder, file.name, model_file, settings, file.content, fill)
        started = Started.of(made)
        return cls(file=file, folder=made, started=started, progress=progress, fresh=True, **own)

    @classmethod
    def resume(
        cls,
        folder: Path,
        progress: bool = True,
        data_root: Path | None = None,
        *,
        updates: int | None = None,
        epochs: int | None = None,
        device: str | None = None,
    ) -> Self:
        """A run as its last checkpoint left it, to go on to its end, or for ``updates`` or ``epochs``.

        The end moves only where these lead beyond it, or it was reached. ``data_root`` goes before the one
        it was started with, and ``device`` before the one it was trained on.
        """
        run_folder = kind_of_folder().open(folder)
        run_folder.hold()
        try:
            started = Started.of(run_folder)
            root = started.data_root if data_root is None else data_root
            device = device or started.device
            file = cls._read(run_folder.model_file, started.base, root)
            own = cls._continued(file, run_folder, started, device_of(device))
            started = started.moved(device, run_folder)
            made, in_epoch = own["trainer"].updates, len(own["batches"])
            run_folder.rewind(made)
            more = updates or (epochs or 0) * in_epoch
            until = made + more if more else None
            if until and (started.ended or until > started.total(in_epoch)):
                started = started.prolonged(until, run_folder)
        except BaseException:
            run_folder.release()
            raise
        return cls(
            file=file, folder=run_folder, started=started, progress=progress, until=until, **own
        )

    # --- What each kind of model file has of its own ----------------------------------------------------

    @classmethod
    def _read(cls, path: Path, base: str | None, data_root: Path | str | None) -> Any:
        """The model file; ``base`` and ``data_root`` are where its data may lie."""
        raise NotImplementedError

    @classmethod
    def _compiled(cls, file: Any, seed: int, device: torch.device, **given: Any) -> dict[str, Any]:
        """``trainer``, ``batches`` and the kind's further fields of a fresh run; ``given`` are options."""
        raise NotImplementedError

    @classmethod
    def _continued(
        cls, file: Any, folder: RunFolder, started: Started, device: torch.device
    ) -> dict[str, Any]:
        """The same fields as the folder's checkpoint left them."""
        raise NotImplementedError

    @classmethod
    def _settings(
        cls, file: Any, updates: int | None, epochs: int | None, data_root: Path | None
    ) -> dict[str, Any]:
        """``updates``, ``epochs``, ``data`` and ``data_root`` of ``run.json``."""
        raise NotImplementedError

    @classmethod
    def _fill(cls, made: RunFolder, file: Any, trainer: Trainer) -> None:
        """Write what a folder has from the start."""
        trainer.save(made.checkpoint)

    def _fit(self, updates: int) -> History:
        """Make so many updates."""
        raise NotImplementedError

    def _write_results(self) -> None:
        """What is written of a training that has ended, beside its checkpoint; the model holds its result."""
        raise NotImplementedError

    # --- The training -----------------------------------------------------------------------------------

    @property
    def leads(self) -> bool:
        """Whether this process writes the folder; of several the first does."""
        return self.trainer.compiled.leads

    @property
    def updates(self) -> int:
        """Updates the whole run makes."""
        return self.started.total(len(self.batches))

    def train(self) -> None:
        """Go on to the end of the run, and write its results; or :attr:`until`, and keep what was learnt.

        Raises :class:`Stopped` on SIGINT and SIGTERM. Where anything fails, what was learnt is kept and the
        error says how to go on; a fresh run that learnt nothing leaves no folder.
        """
        try:
            self._learn()
            if self.started.ended:
                self.trainer.save(self.folder.checkpoint)
                self.trainer.finish()
                from_first(self._processes, self._write_results)
            else:
                self._keep(together=True)
        except KeyboardInterrupt:
            self._keep()
            raise Stopped from None
        except Exception as error:
            if self.fresh and not self.trainer.updates:
                self.folder.discard()
            else:
                self._keep()
                if self.leads:
                    made = f"the first {self.trainer.updates} updates"
                    kept = "the updates up to the latest checkpoint" if self._lies_apart else made
                    error.add_note(
                        f"{kept} are kept; go on with: gncompile resume {self.folder.path}"
                    )
            raise
        finally:
            self.folder.release()

    def _learn(self) -> None:
        """Make the updates that are left, and note why the run ended, where it did."""
        if self.started.ended:
            return
        until, reason = self.until or self.updates, ""
        remaining = until - self.trainer.updates
        if remaining > 0:
            with signals_set(self._stop, self._processes is None):
                history = self._fit(remaining)
            early = history.stopped_early or self.trainer.updates < until
            reason = history.ended if early else ""
        if not reason and self.trainer.updates >= self.updates:
            reason = f"{self.updates} updates made"
        if reason:
            self.started = self.started.ended_with(reason, self.folder)

    @property
    def _lies_apart(self) -> bool:
        """Whether it takes all processes to store the training, which may be at different places."""
        return bool(self.trainer.compiled.program.kept)

    def _keep(self, together: bool = False) -> None:
        """Store what was learnt so far, as far as that can still be done."""
        if self._lies_apart and not together:
            return
        with suppress(Exception), signals_set(threading.Event(), self._processes is None):
            self.trainer.save(self.folder.checkpoint)
            if self.leads:
                draw_loss(self.folder.history(), self.folder.path / "loss.png")

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

    def _after_step(self, record: Record) -> None:
        self.folder.append(record.to_dict())
        stop, processes = self._stop.is_set(), self._processes
        if stop if processes is None else processes.any(stop):  # all of them behind the same step
            raise Stopped

    @property
    def _processes(self) -> Processes | None:
        return self.trainer.compiled.executable.processes

    def _loggers(self, kinds: Iterable[str]) -> list[object]:
        """What ``[training] log`` names, of the process that writes."""
        return [LOGGERS[kind](self.folder) for kind in kinds] if self.leads else []


@dataclass(kw_only=True)
class TrainingRun(FolderRun):
    """A compiled model file, its data, and its folder."""

    file: ModelFile
    data: DataSplit

    @classmethod
    def _read(cls, path: Path, base: str | None, data_root: Path | str | None) -> ModelFile:
        return load_model_file(path, base, data_root)

    @classmethod
    def _compiled(
        cls, file: ModelFile, seed: int, device: torch.device, **given: Any
    ) -> dict[str, Any]:
        data = load_data(file)
        trainer = compile_file(file, seed, device=device, **given)
        if file.training.output_bias == "mean":
            set_output_bias(file, trainer.model, data.train_y)
        return {"trainer": trainer, "data": data, "batches": _batches(trainer, file, data, seed)}

    @classmethod
    def _continued(
        cls, file: ModelFile, folder: RunFolder, started: Started, device: torch.device
    ) -> dict[str, Any]:
        from ..training.trainer import Trainer

        model = file.build(started.seed).to(device)
        data = Run(folder, started, file, model).data()
        trainer = Trainer.resume(folder.checkpoint, model)
        batches = _batches(trainer, file, data, started.seed)
        return {"trainer": trainer, "data": data, "batches": batches}

    @classmethod
    def _settings(
        cls, file: ModelFile, updates: int | None, epochs: int | None, data_root: Path | None
    ) -> dict[str, Any]:
        if updates is None and epochs is None:
            updates, epochs = file.training.updates, file.training.epochs
        root = None if data_root is None else str(data_root.absolute())
        length = {"updates": updates, "epochs": epochs}
        return {**length, "data": file.split.digest(), "data_root": root}

    @classmethod
    def _fill(cls, made: RunFolder, file: ModelFile, trainer: Trainer) -> None:
        made.schema = file.schema
        super()._fill(made, file, trainer)

    def _write_results(self) -> None:
        """Weights, report and pictures of the training that has ended."""
        self.save_weights()
        run = Run(self.folder, self.started, self.file, self.trainer.model)
        run.trainer = self.trainer
        draw(run, self.data)
        self.folder.write_report(report(run, self.data))
        pages = self.folder.own_folder("derivation")
        self.trainer.report(pages, self.file.name, self.file.batch_size)

    def _fit(self, updates: int) -> History:
        training = self.file.training
        stop = training.early_stop
        return self.trainer.fit(
            self.batches,
            updates=updates,
            validation=self.data.validation,
            validate_every=training.validate_every,
            callbacks=[self._after_step],
            progress=self.progress,
            checkpoint=self.folder.checkpoint,
            checkpoint_every=self.started.checkpoint_every,
            early_stop=EarlyStop(stop.patience, stop.monitor, stop.min_delta) if stop else None,
            keep_best=training.keep_best,
            metrics=training.metrics,
            loggers=self._loggers(training.log),
        )


def _batches(trainer: Trainer, file: ModelFile, data: DataSplit, seed: int) -> Batches:
    x, y = resident(trainer, data.train_x, data.train_y)
    return Batches(x, y, file.training.batch_size, seed)


LOGGERS: Mapping[str, Callable[[RunFolder], object]] = {
    "csv": lambda folder: CSVLogger(folder.own_file("history.csv")),
    "tensorboard": lambda folder: TensorBoardLogger(folder.own_folder("tensorboard")),
}
"""What ``[training] log`` names."""
