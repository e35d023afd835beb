"""The trainer: one class for all that a user asks of a compiled model; its parts do the work.

A step is a transaction (:mod:`~gncompile.training.stepping`); which phases of the program it runs is told
in :mod:`~gncompile.training.steps` for steps that the host looks after, and in
:mod:`~gncompile.training.ahead` for those that run ahead of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from ..data.data_sets import Batches
from ..errors import GncompileError, visible
from ..graph.model_graph import TracedModel
from . import checkpoint as checkpoints
from .ahead import DeferredStats
from .batches import Returned, Target
from .callbacks import Callback
from .compiled import Compiled
from .counters import Counters
from .early_stop import EarlyStop
from .factors import KroneckerFactors
from .first_batches import FirstBatches
from .fit import Fit
from .fitting import Fitting
from .gather import Gathering, Wanted
from .joining import Joining
from .loaders import Pair, ReadBatch, the_only
from .metrics import Metric
from .place import Place
from .questions import Questions
from .records import History, StepStats
from .reports import BATCH, Reports
from .stepping import Stepping

Inputs = Tensor | tuple[Tensor, ...]


class Trainer:
    """A compiled second-order (or first-order baseline) trainer for one model and loss.

    Made by :func:`gncompile.compile`. The model's parameters are updated in place and stay its own.
    ``step`` takes any batch size. A batch with non-finite values is refused with
    :class:`~gncompile.errors.BatchError` and changes nothing; an update after which the loss is not finite,
    or is seen to be higher on the same batch, is undone (the parameters get back their values before it,
    damping rises). The latter is looked at in the first steps, and later whenever the damping is adapted.

    A step is a transaction: if it is interrupted, by Ctrl-C or any exception, all is as before it.

    The reported parameters (:mod:`gncompile.training.reported`), the averages where these were last seen to
    be better and else the latest, or after a fit its best, are what :meth:`evaluate` and :meth:`predict`
    speak of, what a checkpoint's ``model/…`` holds, and what the model holds after ``fit``, ``finish`` and
    ``resume``. In a loop of steps it holds the latest; ``loss`` and ``gradients`` take what it holds.

    A model compiled in training mode drops in its steps what its dropout says, by masks drawn once a step; in
    evaluation mode, and whatever else a trainer is asked (loss, predictions, …), nothing is dropped. The
    model may get other tensors between steps; one that computes something else is refused
    (:mod:`gncompile.training.model_identity`). ``copy.deepcopy`` gives an independent trainer and model.
    """

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self.model, self.loss_function = compiled.model, compiled.loss
        self.settings = compiled.settings
        self.place = Place()
        self.history = History()
        """The records of the latest fit, whether it has come to its end or not."""
        self.gathers = False
        """Whether batches are put together for this trainer; without, small ones bring a warning."""
        executable = self._executable = compiled.executable
        self.program = executable.program
        """The step program this trainer runs."""
        self.source_file: Path | None = executable.source_file
        """The file of the emitted :attr:`source`, for reading; None where none could be written."""
        self.dtype, self.device = executable.memory.dtype, executable.memory.device
        """The precision everything is computed in, and where."""
        self.backend, self.precision = executable.backend, executable.memory.precision
        """``"torch"``, ``"triton"`` or ``"reference"``, and that of the Triton backend's float32 products."""
        self.variants = executable.variants
        """Options of the instructions that are not computed in the default way, by name."""
        self._count = Counters()
        self._steps = Stepping(compiled, self._count, self.place)
        self.joining = Joining(compiled, self._count)
        self.reported, self._state = self._steps.reported, self._steps.state
        self.looked_after = self._steps.looked_after
        self._wanted, self._first_batches = Wanted(compiled, self._count), FirstBatches(compiled)
        self._questions, self._reports = Questions(compiled, self.reported), Reports(compiled)
        self.evaluation = self._questions.evaluation

    # --- one step -------------------------------------------------------------------------------------

    def step(self, x: Inputs, y: Target) -> StepStats | DeferredStats:
        """Update the model's parameters on the batch ``x: [N, …]``, ``y`` (as the loss takes it).

        Each step reads the rows in a random order of its own, so theirs does not matter. Minibatches of fewer
        than 32 samples bring a :class:`~gncompile.errors.SmallBatchWarning`; :meth:`gather` joins such. Of
        many processes each gives its own samples (:mod:`gncompile.training.joining`). Raises
        :class:`~gncompile.errors.BatchError` for a batch of the wrong shape or dtype or with non-finite
        values; nothing is changed then. On a CUDA device the step only begins here: the statistics wait for
        it when they are read, and a bad batch is left out and counted (``rejected``); a batch in pinned
        memory must not be overwritten before.
        """
        self.ready()
        batch = self.joining.read(x, y)
        self._first_batches.look(self.updates, x, y, self.gathers, batch.samples)
        return self._steps.step(batch)

    def ready(self) -> None:
        """Before any use: follow the model to other whole tensors of the same shapes; another is refused."""
        self._steps.ready()

    def settle(self, x: Inputs, y: Target) -> None:
        """Undo the last update if the loss of ``(x, y)`` is not finite after it, as the next step would."""
        self.ready()
        self.reported.hide()
        if self._steps.unconfirmed and not self._steps.is_sound(self.joining.read(x, y)):
            self._steps.undo()

    def finish(self) -> None:
        """Leave in the model what is reported; ``fit`` ends so.

        The next step goes on from the latest, unless the model has been given others in the meantime.
        """
        self.ready()
        self.reported.show()

    # --- many steps -----------------------------------------------------------------------------------

    def fit(
        self,
        train: Batches | Iterable[object],
        *more: object,
        updates: int | None = None,
        epochs: int | None = None,
        validation: object = None,
        validate_every: int | None = None,
        callbacks: Callback | Sequence[Callback] = (),
        progress: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 20,
        early_stop: int | EarlyStop | None = None,
        keep_best: bool | None = None,
        metrics: str | Metric | Sequence[object] = (),
        loggers: object = (),
        skip_bad_batches: bool = False,
        continue_order: bool = True,
        batch: ReadBatch | None = None,
        split: bool | None = None,
    ) -> History:
        """Train for ``updates`` further steps, or for ``epochs`` passes over ``train``; returns the history.

        The arguments, and what an interrupt leaves, are told at :class:`~gncompile.training.fit.Fit`.

        >>> import gncompile, torch
        >>> trainer = gncompile.compile(torch.nn.Linear(4, 1), "mse", torch.zeros(1, 4))
        >>> batches = gncompile.data.Batches(torch.randn(1000, 4), torch.randn(1000, 1), batch_size=100)
        >>> trainer.fit(batches, epochs=1, progress=False).samples
        [300, 300, 300, 400]
        """
        asked = Fit(
            the_only(train, more), updates, epochs, validation, validate_every, callbacks, progress,
            checkpoint, checkpoint_every, early_stop, keep_best, metrics, loggers, skip_bad_batches,
            continue_order, batch, split,
        )  # fmt: skip
        return Fitting(asked, self).run()

    def gather(
        self, train: Iterable[object], epochs: int | None = 1, batch: ReadBatch | None = None
    ) -> Iterator[Pair]:
        """The batches ``(x, y)`` of ``train``, put together to as many samples as are wanted for a step.

        For loops of one's own; ``fit`` does the same, and ``batch`` is as there. ``epochs`` is how often
        ``train`` is gone through, None without end. A large enough batch is passed on as it is. A step's
        samples may come from two passes, but a whole pass is always enough; the end of the last one comes
        with the batch of before.

        Raises :class:`~gncompile.errors.BatchError` for a batch that no step can be taken on.

        >>> import gncompile, torch
        >>> trainer = gncompile.compile(torch.nn.Linear(3, 1), "mse", torch.zeros(1, 3))
        >>> small = [(torch.ones(100, 3), torch.ones(100, 1)) for _ in range(7)]
        >>> [len(y) for x, y in trainer.gather(small)]
        [300, 300, 400]
        """
        return iter(Gathering(self, train, epochs, batch=batch))

    @property
    def samples_wanted(self) -> int:
        """The samples wanted for the next step, as far as the last measurement of noise tells.

        From ``gather_samples`` to what ``memory_budget`` holds; 1 for the first-order baselines.
        """
        return self._wanted.now

    # --- questions ------------------------------------------------------------------------------------

    @property
    def _asked(self) -> Questions:
        self.ready()
        return self._questions

    def check_batch(self, x: Inputs, y: Target) -> None:
        """Raise :class:`~gncompile.errors.BatchError` if no step can be taken on ``(x, y)``.

        Values are looked at only where this does not mean to wait for a device.
        """
        self._questions.check_batch(x, y)

    def gradients(self, x: Inputs, y: Target) -> dict[str, Tensor]:
        """``∂Ē/∂θ`` of the objective (L2 included) by parameter name, as autograd would give it."""
        return self._asked.gradients(x, y)

    def loss(self, x: Inputs, y: Target) -> Tensor:
        """The data loss of one batch at the parameters that the model holds, a scalar tensor."""
        return self._asked.loss(x, y)

    def predict(self, x: Inputs | Iterable[object], averaged: bool | None = None) -> Returned:
        """The network output ``[N, …]`` of inputs, or of all that a loader gives, in its order.

        At the parameters of :meth:`evaluate`, as there; :class:`~gncompile.errors.BatchError` for no samples.
        """
        return self._asked.predict(x, averaged)

    def evaluate(
        self, x: object, y: Target = None, batch_size: int = 1000, averaged: bool | None = None
    ) -> float:
        """The data loss of a whole data set, ``x, y`` or alone what ``fit`` validates: a loader, ``Batches``.

        In batches: the mean over samples (the sum, for losses that sum). Of the reported parameters, see
        :class:`Trainer`; ``averaged=True`` asks for the averages, ``averaged=False`` for the latest.
        :class:`~gncompile.errors.BatchError` for no samples, other numbers of inputs and targets, and values
        that are not finite.
        """
        return self._asked.evaluate(x, y, batch_size, averaged)

    def averaged_parameters(self, averaged: bool | None = True) -> AbstractContextManager[None]:
        """Within this block the model holds its averaged parameters (``Settings.average``).

        With ``averaged=None`` what is reported, with False the latest. A trainer without an average, or
        without an update, always has the latest.
        """
        return self._asked.parameters(averaged)

    def factors(self) -> dict[str, KroneckerFactors]:
        """The running averages of the curvature factors by layer, in full; empty before the first step."""
        self.ready()
        return self._questions.factors() if self.updates else {}

    def input_gradient(self, x: Inputs, y: Target) -> Tensor | tuple[Tensor | None, ...]:
        """``∂E/∂x`` of one batch's data loss, shaped like ``x``, None for whole numbers: for a trunk below.

        At the parameters that the model holds, without dropout; a pass forwards and one backwards.

        >>> import gncompile, torch
        >>> trunk, head = torch.nn.Linear(5, 4), torch.nn.Linear(4, 1)
        >>> trainer, h = gncompile.compile(head, "mse", torch.zeros(1, 4)), trunk(torch.randn(40, 5))
        >>> h.backward(trainer.input_gradient(h, torch.randn(40, 1)))  # and on with trainer.step, adam.step
        """
        return self._asked.input_gradient(x, y)

    def rop(self, x: Inputs, direction: Mapping[str, Tensor]) -> Returned:
        """R-operator: ``(∂z/∂θ) direction`` for one direction by parameter name: ``[N, …]``."""
        return self._asked.rop(x, direction)

    def quadratic(
        self, x: Inputs, y: Target, directions: list[Mapping[str, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """``M_ij = d_iᵀ(G + κI)d_j`` and ``b_i = d_iᵀ∇`` of the full Gauss-Newton quadratic [MG §7]."""
        return self._asked.quadratic(x, y, directions)

    def trained(self) -> dict[str, Tensor]:
        """The parameters this trainer updates, by name, in graph order."""
        return self.compiled.trained()

    # --- reports --------------------------------------------------------------------------------------

    def summary(self, batch: int = BATCH, width: int | None = None) -> str:
        """Tables of layers, factors, mean cost of a step on ``batch`` samples, and memory, ``width`` wide."""
        return self._reports.summary(batch, width)

    def explain(self, layer: str | None = None, batch: int = BATCH) -> str:
        """What was derived for one layer, or for everything: formulas, what is stored and why, cost."""
        return self._reports.explain(layer, batch)

    def report(
        self, folder: Path | str, title: str | None = None, batch: int = BATCH
    ) -> list[Path]:
        """Write the derivation as linked HTML pages; returns the files, ``index.html`` first.

        A page a node, with formulas, cost and source lines; plots of transfer functions need matplotlib.
        """
        return self._reports.report(folder, title, batch)

    def report_latex(self, path: Path | str, title: str | None = None, batch: int = BATCH) -> Path:
        """Write the derivation as one LaTeX article to ``path``, and return it."""
        return self._reports.report_latex(path, title, batch)

    def emit(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the generated source of the step into ``folder``; returns the files."""
        return self._reports.emit(folder)

    @property
    def traced(self) -> TracedModel:
        """What the model was traced to, with the tensors that it has now."""
        return self.compiled.traced

    @property
    def updates(self) -> int:
        """Steps taken so far, those whose update was refused included."""
        return self._count.updates

    @property
    def rejected(self) -> int:
        """Updates undone or refused so far."""
        return self._steps.rejected

    @property
    def damping(self) -> float | None:
        """The Levenberg-Marquardt damping λ, None for first-order methods.

        One that is set is the next step's, and adapted from there; the factors' damping γ goes with √λ.
        """
        return self.compiled.damping

    @damping.setter
    def damping(self, value: float) -> None:
        self.ready()
        self._steps.set_damping(value)

    @property
    def source(self) -> str:
        """The text of the emitted step; written for reading only where the reference backend runs."""
        return self._reports.source

    def __repr__(self) -> str:
        layers = f"{len(self.traced.graph.layers)} layers, {self.updates} updates"
        return visible(f"Trainer({self.traced.name}, {self.settings.method}, {layers})")

    # --- states ---------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything a step reads or writes: groups of tensors by name (not copied), and plain numbers.

        ``"model"`` holds the reported parameters, ``"latest"`` those that training goes on from, if others.
        With ``factors="sharded"`` it is a collective call of all processes.
        """
        self.ready()
        return self._state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where ``state`` was taken; the model then holds the reported parameters.

        :class:`~gncompile.errors.CheckpointError`, and nothing is changed, if it is another model's. Random
        draws start again from the seed where the state is that of another kind of generator: of the Triton
        backend for any other, or of torch's on another device.
        """
        self.ready()
        self._state.load_state_dict(state, self._steps.journal.surely)
        self._wanted.forget()
        self.finish()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Replace ``path`` by all a step reads. With ``factors="sharded"`` it is a collective call."""
        self.ready()
        checkpoints.save(self.compiled, self._state.state_dict(self.compiled.leads), path)

    @staticmethod
    def resume(
        path: str | os.PathLike[str], model: nn.Module, loss: object = None, process_group: object = None
    ) -> Trainer:  # fmt: skip
        """The trainer saved at ``path``, compiled anew for ``model``, which gets the saved parameters.

        ``model`` is a module of the same architecture, as it was given to ``compile``; it then holds the
        reported parameters, as after ``fit``. ``loss`` is only needed to insist on one; ``process_group`` is
        as for ``compile``, of any number of processes. The same backend, settings, generator and place in the
        data's order are restored, so that training goes on bit for bit on the same machine with as many
        threads. :class:`~gncompile.errors.CheckpointError`, and no change, for another model's checkpoint.
        """
        return checkpoints.resume(path, model, loss, Trainer, process_group=process_group)

    def __deepcopy__(self, memo: dict[int, Any]) -> Trainer:
        """``copy.deepcopy``: a trainer of a copied model, compiled anew, in the same state."""
        self.ready()
        new = checkpoints.copied(self, memo)
        if not self.reported.shows:
            new.reported.hide()
        return new

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise GncompileError(
            "a trainer cannot be pickled, nor copied without its model",
            instead="write it with trainer.save(path) and read it with Trainer.resume(path, model); "
            "copy.deepcopy(trainer) makes an independent one",
        )
