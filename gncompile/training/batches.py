"""From what a user passes as a batch to what a program reads: checked, flat, and in the program's dtype."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import BatchError, expected_got
from ..graph.embedding import classes_of, is_whole
from ..graph.model_graph import ModelGraph
from ..graph.nodes import Node, Output
from ..losses.targets import mapped, tensors_of
from ..losses.vocabulary import Loss

Target = Any
"""Targets as the loss takes them: a tensor, ``(y, w)``, or a dict or tuple of those of several outputs."""

Returned = Any
"""An output as the model returns it: one tensor, or a tuple or dict of them."""


@dataclass(frozen=True)
class BatchReader:
    """Checks and flattens batches for one graph and loss."""

    graph: ModelGraph
    loss: Loss
    dtype: torch.dtype
    device: torch.device
    nodes: Sequence[Node]
    """What the network takes."""

    def inputs(self, x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs ``[N, *shape]`` as flat ``[N, size]`` in the program's dtype and device."""
        given = input_tensors(x)
        nodes = self.nodes
        if len(given) != len(nodes):
            raise BatchError(f"the model takes {len(nodes)} inputs, the batch has {len(given)}")
        for node, tensor in zip(nodes, given, strict=True):
            if not is_whole(node.op):
                require_floating(tensor, f"input {node.name!r}", self.dtype)
            self._require_values(tensor, f"input {node.name!r}")
            wanted = ("N", *node.shape)
            if tensor.dim() < 1 or tuple(tensor.shape[1:]) != node.shape or tensor.shape[0] == 0:
                found = "no samples" if tensor.numel() == 0 else "the wrong shape"
                raise BatchError(
                    f"input {node.name!r} has {found}\n"
                    + expected_got(f"[{', '.join(map(str, wanted))}]", list(tensor.shape)),
                    instead="pass one row a sample, shaped like the example inputs of compile",
                )
        if len({tensor.shape[0] for tensor in given}) > 1:
            sizes = [tensor.shape[0] for tensor in given]
            raise BatchError(f"the inputs have different batch sizes {sizes}")
        read = (
            self._whole(node, tensor) if is_whole(node.op) else tensor
            for node, tensor in zip(nodes, given, strict=True)
        )
        return tuple(self._placed(t.detach(), self.dtype).reshape(t.shape[0], -1) for t in read)

    def _whole(self, node: Node, tensor: Tensor) -> Tensor:
        """Whole numbers as a table of the network can look them up.

        On a device, where looking at them would wait, the others become NaN: the step leaves the batch out.
        """
        if tensor.is_floating_point() or tensor.dtype == torch.bool:
            raise BatchError(
                f"input {node.name!r} holds {str(tensor.dtype).removeprefix('torch.')}, and a table of "
                "the network looks up whole numbers",
                instead="pass x.long()",
            )
        classes = self._classes[node.name].to(tensor.device)
        outside = ((tensor < 0) | (tensor >= classes)) & (classes > 0)
        if tensor.device.type != "cpu":
            return tensor.to(self.dtype).masked_fill(outside, float("nan"))
        if outside.any():
            sample, *place = outside.nonzero()[0].tolist()
            rows, number = int(classes[tuple(place)]), int(tensor[(sample, *place)])
            at = f"[:, {', '.join(map(str, place))}]" if place else ""
            raise BatchError(
                f"input {node.name!r}{at} holds {number}, and the smallest table that it looks up has "
                f"{rows} rows",
                instead=f"number categories from 0 to {rows - 1}, or enlarge the table",
            )
        return tensor

    @cached_property
    def _classes(self) -> dict[str, Tensor]:
        """How many rows the smallest table has that looks up a whole number, by input; 0 for any number."""
        return {
            node.name: torch.tensor(rows).reshape(node.shape)
            if (rows := classes_of(self.graph, node.name))
            else torch.zeros(node.shape, dtype=torch.long)
            for node in self.nodes
            if is_whole(node.op)
        }

    def _require_values(self, tensor: Tensor, what: str) -> None:
        if tensor.device.type == "meta" and self.device.type != "meta":
            found = f"{what} is on the meta device, which holds no values"
            raise BatchError(found, instead=f"pass a tensor on {self.device}")

    def _placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        """On the program's device, where the copy does not wait for the steps that are running there.

        One in pinned memory is still being read when this returns. Towards a CPU a copy has to wait.
        """
        ahead = self.device.type != "cpu"
        return tensor.to(device=self.device, dtype=dtype, non_blocking=ahead)

    def target(self, batch: int, y: Target) -> Tensor:
        """Targets as the rows that a program reads, see :mod:`gncompile.losses.loss_types`.

        Targets out of the loss's range raise :class:`BatchError`; on a device, where looking at them
        would wait, they become NaN instead, and the step leaves the batch out.
        """
        output = self.graph.output
        if not self.loss.structured and isinstance(y, tuple | list) and len(y) == 2:
            raise BatchError(
                f"the target is a {type(y).__name__} of 2, and the loss {self.loss.name!r} takes one tensor",
                instead="pass y alone; for (y, w), w a weight of every sample or element, take the loss "
                "gncompile.losses.weighted(loss)",
            )
        y = mapped(self._read, y) if self.loss.structured else self._read(y)
        self.loss.check_target((batch, *output.shape), self.dtype, y)
        y = mapped(lambda each: self._placed(each, each.dtype), y)
        return self.loss.rows(y, output.shape, self.dtype)

    def _read(self, y: object) -> Tensor:
        y = require_real(y, "the target").detach()
        self._require_values(y, "the target")
        return y.to(self.dtype) if y.is_floating_point() else y

    def pair(self, x: Tensor | tuple[Tensor, ...], y: Target) -> tuple[tuple[Tensor, ...], Tensor]:
        """:meth:`inputs` and :meth:`target` of one batch, or of a whole data set."""
        inputs = self.inputs(x)
        return inputs, self.target(inputs[0].shape[0], y)

    def stand_in(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """A row of zeros as :meth:`pair` gives rows, where there is no sample."""
        width = sum(self.loss.layout(self.graph.output.size).values())
        sizes = [*(node.size for node in self.nodes), width]
        *inputs, target = (torch.zeros(1, n, dtype=self.dtype, device=self.device) for n in sizes)
        return tuple(inputs), target

    def all_finite(self, inputs: tuple[Tensor, ...], target: Tensor | None = None) -> None:
        """:meth:`require_finite`, by one sum a tensor where all is well."""
        parts = inputs if target is None else (*inputs, target)
        # A sum of finite values may overflow; then every element decides.
        if not all(math.isfinite(float(part.sum())) for part in parts):
            self.require_finite(inputs, target)

    def require_finite(self, inputs: tuple[Tensor, ...], target: Tensor | None) -> None:
        """Raise :class:`BatchError` naming the first non-finite element of the batch, if there is one."""
        named = [(f"input {i}", x) for i, x in enumerate(inputs)]
        named += [("target", target)] if target is not None else []
        for name, tensor in named:
            bad = (~torch.isfinite(tensor)).nonzero()
            if len(bad):
                row, column = (int(i) for i in bad[0])
                raise BatchError(
                    f"the batch has {len(bad)} non-finite values in {name}, "
                    f"the first is {float(tensor[row, column])} at sample {row}, feature {column}",
                    instead="clean the data; the step was refused, parameters and state are unchanged",
                )


def input_tensors(x: object, what: str = "the input") -> tuple[Tensor, ...]:
    """The inputs of a batch, one tensor or several in a tuple or list; ``what`` is their name in errors."""
    if not isinstance(x, tuple | list):
        return (require_real(x, what),)
    if not x:
        raise BatchError(f"{what}: no tensors", instead="pass a tensor [N, ...]")
    return tuple(require_real(tensor, f"{what}, number {i},") for i, tensor in enumerate(x))


def require_real(tensor: object, what: str) -> Tensor:
    """``tensor`` itself if it is an ordinary tensor of real numbers; else :class:`BatchError`."""
    found, instead = None, "pass a torch.Tensor with one row a sample"
    if not isinstance(tensor, Tensor):
        found = f"{type(tensor).__module__}.{type(tensor).__qualname__}".removeprefix("builtins.")
        if found == "numpy.ndarray":
            instead = "pass torch.from_numpy(array)"
        elif isinstance(tensor, tuple | list):
            instead = "pass one torch.Tensor; torch.stack or torch.cat join several"
    elif tensor.is_nested or tensor.layout != torch.strided:
        layout = "a nested tensor" if tensor.is_nested else f"of layout {tensor.layout}"
        found, instead = layout, "pass an ordinary tensor: x.to_dense(), or x.to_padded_tensor(0.0)"
    elif tensor.is_quantized:
        found, instead = "quantized", "pass x.dequantize()"
    elif tensor.is_complex():
        found = f"complex, {tensor.dtype}"
        instead = (
            "pass real numbers: torch.view_as_real(x) has real and imaginary parts as features"
        )
    elif tensor.dim() == 0:
        found = "a single number"
    if found is not None:
        raise BatchError(f"{what} is {found}", instead=instead)
    assert isinstance(tensor, Tensor)
    return tensor


def require_floating(tensor: Tensor, what: str, dtype: torch.dtype) -> None:
    """Raise unless the inputs are floating point numbers, as torch's layers demand it too."""
    if not tensor.is_floating_point():
        raise BatchError(
            f"{what} holds {str(tensor.dtype).removeprefix('torch.')}, and the network computes with "
            "floating point numbers",
            instead=f"pass x.to({dtype}); scale images of bytes to about 0 to 1 as well",
        )


def first_tensor(y: Target) -> Tensor:
    """The first tensor of a target, which tells the number of samples and the device."""
    tensors = tensors_of(y)
    return require_real(tensors[0] if tensors else y, "the target")


def samples_of(y: Target) -> int:
    """The number of samples of a target."""
    return len(first_tensor(y))


def part_of(y: Target, rows: slice | Tensor) -> Target:
    """The target of some of the samples."""
    return mapped(lambda each: require_real(each, "the target")[rows], y)


def joined_targets(targets: Sequence[Target]) -> Target:
    """The targets, or outputs, of several batches as those of one."""
    joined = iter([torch.cat(each) for each in zip(*map(tensors_of, targets), strict=True)])
    return mapped(lambda _: next(joined), targets[0])


def as_returned(output: Node, z: Tensor) -> Returned:
    """Rows ``[N, K]`` in the form in which the model returns its output."""
    assert isinstance(output.op, Output)
    if not output.op.outputs:
        return z.reshape(-1, *output.shape)
    names, shapes = zip(*output.op.outputs, strict=True)
    parts = z.split([math.prod(shape) for shape in shapes], dim=1)
    shaped = [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]
    return dict(zip(names, shaped, strict=True)) if output.op.named else tuple(shaped)
