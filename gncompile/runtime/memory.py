"""The tensors of a compiled program: leaves the program reads and writes, and work buffers.

A :class:`Memory` belongs to one executable. Parameters and constants are the user's own tensors; states
survive from step to step; buffers hold the values of one batch and are reused for every batch size up to
the largest one met.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..base.memory_budget import require_memory
from ..errors import BatchError, InternalError
from ..program.costs import CostModel
from ..program.specs import Dim, Spec, Structure
from ..program.step_program import State, StepProgram
from .draws import Draws
from .packing import pack, sent, unpack
from .parts import ALL
from .processes import Processes


class Memory:
    """Named tensors of one program; see the module docstring."""

    def __init__(
        self,
        program: StepProgram,
        parameters: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        dtype: torch.dtype,
        device: torch.device,
        draws: Draws,
        precision: str = "highest",
        processes: Processes | None = None,
    ) -> None:
        self.dtype = dtype
        self.device = device
        self.rebind(parameters, constants)
        self.states = {key: self.initial(state) for key, state in program.states.items()}
        self.packed, self.packed_states = self._pack(program.states)
        self._scalars = {
            key: state for key, state in program.states.items() if not state.spec.shape
        }
        self.draws = draws
        self.precision = precision
        self.processes = processes
        self.part = ALL
        """What of the batch under way is this process's."""
        self.batch_size = torch.zeros((), dtype=dtype, device=device)
        self._flat: dict[str, Tensor] = {}
        self._whole: tuple[Memory, frozenset[str]] | None = None
        self._sum: Callable[[Tensor], None] = self._over_processes

    def shard(
        self, whole: frozenset[str], states: Iterable[str], add_up: Callable[[Tensor], None]
    ) -> Memory:
        """The memory of a shard of the batch: with buffers of its own, but for values of the ``whole`` batch,
        and with ``states`` of its own. ``add_up`` is what becomes of its buckets."""
        shard = copy.copy(self)
        shard.states = {**self.states, **{key: self.states[key].clone() for key in states}}
        shard._flat, shard._whole, shard._sum = {}, (self, whole), add_up
        return shard

    def rebind(self, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> None:
        """Take these tensors for the user's; what is bound to others has to be bound anew."""
        self.parameters = dict(parameters)
        self.constants = {
            name: tensor.detach().to(device=self.device, dtype=self.dtype)
            for name, tensor in constants.items()
        }

    def _pack(self, states: Mapping[str, State]) -> tuple[Tensor, frozenset[str]]:
        """Lay the small states side by side: ``packed``, a vector that holds them all, and their names."""
        vectors = {key: self.flat(self.states[key]) for key in states}
        small = {key: flat for key, flat in vectors.items() if flat.numel() <= PACKED}
        sizes = [-(-flat.numel() // APART) * APART for flat in small.values()]
        packed = torch.zeros(sum(sizes), dtype=self.dtype, device=self.device)
        for (key, flat), room in zip(small.items(), packed.split(sizes), strict=True):
            state, place = self.states[key], room[: flat.numel()]
            place.copy_(flat)
            self.states[key] = place.as_strided(state.shape, state.stride())
        return packed, frozenset(small)

    def initial(self, state: State, device: str | None = None) -> Tensor:
        """A state as it is before the first step; on the device ``"meta"`` its shape."""
        shape = tuple(int(d) for d in state.spec.shape)
        padded = torch.zeros(padded_shape(shape), dtype=self.dtype, device=device or self.device)
        tensor = padded[..., : shape[-1]] if shape else padded
        if state.initial == "identity" and len(shape) == 2:
            tensor.fill_diagonal_(1.0)
            return tensor
        numbers = {"zero": 0.0, "one": 1.0, "identity": 1.0}
        return tensor.fill_(float(numbers.get(state.initial, state.initial)))  # type: ignore[arg-type]

    def whole_states(self, kept: Mapping[str, tuple[int, State]], here: bool) -> dict[str, Tensor]:
        """All states, also those of which each is ``kept`` by one process; these ``here`` only if asked for.

        A collective call where any are: a message for each.
        """
        found = dict(self.states)
        for key, (rank, state) in kept.items():
            own = self.states.get(key)
            shape = [int(d) for d in state.spec.shape]
            whole = torch.empty(shape, dtype=self.dtype, device=self.device)
            if own is not None:
                whole.copy_(own)
            self._all.broadcast(whole, rank)
            if here:
                found[key] = whole
        return found

    def initial_scalars(self) -> dict[str, Tensor]:
        """The scalar states as they are before the first step."""
        return {key: self.initial(state) for key, state in self._scalars.items()}

    def parameter(self, key: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A parameter of the user's model, as data without gradient tracking; a view of that shape."""
        parameter = self.parameters[key].detach()
        return parameter if shape is None else parameter.view(shape)

    def constant(self, key: str) -> Tensor:
        """A constant of the user's model."""
        return self.constants[key]

    def state(self, key: str) -> Tensor:
        """A state tensor."""
        return self.states[key]

    def scalar(self, key: str) -> Tensor:
        """A number known once a batch is bound."""
        if key != "batch_size":
            raise InternalError(f"unknown scalar {key!r}")
        return self.batch_size

    @staticmethod
    def numbers(**cells: Tensor) -> object:
        """An object whose attributes are the numbers in these tensors of one element, as Python floats."""
        views = {name: memoryview(cell.numpy().data) for name, cell in cells.items()}
        attributes = {name: _number(view) for name, view in views.items()}
        return type("Numbers", (), {"__slots__": (), **attributes})()

    def buffer(self, name: str, shape: tuple[int, ...], packed: bool = False) -> Tensor:
        """A work tensor, allocated once and viewed for smaller batches; NaN until written.

        One that is ``packed`` has no padding between its rows, so that it can be viewed in other shapes.
        """
        if self._whole is not None and name in self._whole[1]:
            return self._whole[0].buffer(name, shape, packed)
        padded = shape if packed else padded_shape(shape)
        count = math.prod(padded)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < count:
            flat = torch.full((count,), float("nan"), dtype=self.dtype, device=self.device)
            self._flat[name] = flat
        rows = flat[:count].view(padded)
        if padded == shape:
            return rows
        rows[..., shape[-1] :] = 0
        return rows[..., : shape[-1]]

    @staticmethod
    def flat(tensor: Tensor) -> Tensor:
        """A buffer or state as a vector, its zero padding included; for sums over all elements."""
        if tensor.dim() < 2 or not tensor.numel():
            return tensor.reshape(-1)
        return tensor.as_strided((tensor.stride(0) * tensor.shape[0],), (1,))

    def random(self, kind: str, out: Tensor, rows: str = "") -> None:
        """Fill ``out`` with standard normal, uniform [0, 1) or ±1 numbers.

        Those of ``rows``, a dimension of samples, are this process's part of what one process would draw for
        the whole batch, so that they do not depend on how many there are.
        """
        positions = self.part.positions(rows) if rows else None
        if positions is None:
            self.draws.fill(kind, out)
            return
        shape, strides = (self.part.whole[rows], *out.shape[1:]), out.stride()
        whole = torch.empty_strided(shape, strides, dtype=out.dtype, device=out.device)
        self.draws.fill(kind, whole)
        out.copy_(whole[positions.to(out.device)])

    # --- one of many processes ------------------------------------------------------------------------

    def pack(self, value: Tensor, bucket: Tensor, start: int, over: str, triangle: bool) -> None:
        """Put this process's part of a value into a bucket, weighed by its share of the samples."""
        weight = self.part.weight(over)
        if not weight:  # of rows that stand in for none: they may hold anything
            bucket[start : start + sent(value, triangle)].zero_()
            return
        place = pack(value, bucket, start, triangle)
        if weight != 1.0:
            place.mul_(weight)

    def all_reduce(self, bucket: Tensor) -> None:
        """Add up the buckets of all parts of the batch, in place."""
        self._sum(bucket)

    @property
    def joined(self) -> Processes | None:
        """The processes that have parts of the batch under way; None where this one works for itself."""
        return None if self.part is ALL else self.processes

    def _over_processes(self, bucket: Tensor) -> None:
        if self.joined is not None:
            self.joined.all_reduce(bucket)

    @staticmethod
    def place(value: Tensor, bucket: Tensor, start: int, triangle: bool) -> None:
        """Put a value that is this process's to make into a bucket."""
        pack(value, bucket, start, triangle)

    def all_gather(self, bucket: Tensor, rank: int, room: int) -> None:
        """Fill a bucket, of which this process has its ``room``, with what the others have."""
        if room == len(bucket):
            return
        self._all.all_gather(bucket, bucket[rank * room : (rank + 1) * room])

    def add_up(self, bucket: Tensor) -> None:
        """Add up vectors of all processes, in which each has its values and zeros elsewhere."""
        self._all.all_reduce(bucket)

    @property
    def _all(self) -> Processes:
        """The processes that share work out, whatever batch is under way."""
        if self.processes is None:
            raise InternalError("a step of many processes runs on one that is alone")
        return self.processes

    @staticmethod
    def unpack(bucket: Tensor, start: int, value: Tensor, triangle: bool) -> None:
        """Take a value out of a bucket."""
        unpack(bucket, start, value, triangle)

    @property
    def buffer_bytes(self) -> int:
        """Bytes held by work buffers."""
        return sum(flat.numel() * flat.element_size() for flat in self._flat.values())


def _number(view: memoryview) -> property:
    def write(_: object, value: float) -> None:
        view[()] = value  # type: ignore[call-overload]  # of format f or d

    return property(lambda _: view[()], write)


def require_states(
    program: StepProgram, buffers: Mapping[str, str], dtype: torch.dtype, device: torch.device
) -> None:
    """Raise :class:`~gncompile.errors.CompileError`, with the largest, where the states and the work buffers
    of a single sample do not fit into memory; nothing is allocated."""
    costs = CostModel(program, batch=1, itemsize=dtype.itemsize)
    needed = {
        **{f"state {key}" + _shape(program.states[key].spec): size
           for key, size in costs.state_bytes().items()},
        **{f"buffer {name}" + _shape(program[name].spec): size
           for name, size in costs.buffer_bytes(buffers).items()},
    }  # fmt: skip
    require_memory(
        needed,
        "the states and work buffers of a step",
        device=device,
        instead="make the layers of these factors narrower, or use method='adam', which keeps none",
    )


def require_buffers(
    program: StepProgram,
    buffers: Mapping[str, str],
    dims: Mapping[str, int],
    held: int,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Raise :class:`~gncompile.errors.BatchError` where the work buffers of a batch, of which ``held`` bytes
    are there, do not fit into memory."""
    costs = CostModel(program, dims["N"], dtype.itemsize, dims, dims["S"])
    sizes = costs.buffer_bytes(buffers)
    needed = {name + _shape(program[name].spec): size for name, size in sizes.items()}
    require_memory(
        needed,
        f"the work buffers of a batch of {dims['N']} samples",
        held=held,
        device=device,
        instead="use smaller batches",
        error=BatchError,
    )


def _shape(spec: Spec) -> str:
    return f" [{', '.join(map(str, spec.shape))}]"


PACKED = 1 << 14
"""States of at most so many elements lie side by side: copied at once, they cost a step next to nothing."""
APART = 64
"""Each of them begins at a multiple of so many elements, as memory of its own would."""

ALIGNMENT = 16
"""Rows of matrices start at multiples of so many elements; odd strides make products up to half slower."""


def padded_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape to allocate: rows of 64 and more elements are padded to the alignment."""
    if len(shape) < 2 or shape[-1] < 4 * ALIGNMENT:
        return shape
    return (*shape[:-1], -(-shape[-1] // ALIGNMENT) * ALIGNMENT)


def bind_shape(shape: tuple[Dim, ...], dims: Mapping[str, int]) -> tuple[int, ...]:
    """A symbolic shape with its symbols replaced."""
    return tuple(dims[d] if isinstance(d, str) else d for d in shape)


def dense(m: Tensor, spec: Spec) -> Tensor:
    """The full matrix behind a structured one."""
    if spec.structure is Structure.SCALED_IDENTITY:
        return m * torch.eye(spec.size, dtype=m.dtype, device=m.device)
    return torch.diag(m) if spec.structure is Structure.DIAGONAL else m
