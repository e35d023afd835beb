"""What the operations of ``program/collectives.py`` compute, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..program.collectives import AllGather, AllReduce, CongruenceRows, Reduced, is_triangle
from ..program.specs import Spec
from .memory import Memory, dense


def collected(
    op: AllReduce | AllGather | CongruenceRows | Reduced,
    v: list[Tensor],
    specs: list[Spec],
    memory: Memory,
) -> Tensor:
    """The result of any of them."""
    match op:
        case AllReduce():
            return all_reduced(op, v, specs, memory)
        case AllGather():
            return all_gathered(op, v, specs, memory)
        case CongruenceRows(first, count):
            w, m = v[0], dense(v[1], specs[1])
            return (w.mT @ m @ w)[first : first + count]
    return reduced(op, v[0])


def all_reduced(op: AllReduce, v: list[Tensor], specs: list[Spec], memory: Memory) -> Tensor:
    """The parts of all processes, weighed and added up; without samples a part counts as 0."""
    weights = map(memory.part.weight, op.over)
    flat = (_flat(value, spec) for value, spec in zip(v, specs, strict=True))
    bucket = torch.cat([
        w * each if w else torch.zeros_like(each) for w, each in zip(weights, flat, strict=True)
    ])  # fmt: skip
    memory.all_reduce(bucket)
    return bucket


def all_gathered(op: AllGather, v: list[Tensor], specs: list[Spec], memory: Memory) -> Tensor:
    """The values of all processes one after another."""
    whole = memory.batch_size.new_zeros(op.elements)
    for value, spec, start in zip(v, specs, op.places, strict=True):
        flat = _flat(value, spec)
        whole[start : start + len(flat)] = flat
    if op.room:
        memory.all_gather(whole, op.rank, op.room)
    else:
        memory.add_up(whole)
    return whole


def reduced(op: Reduced, bucket: Tensor) -> Tensor:
    """The value that begins at an element of the bucket."""
    spec, flat = op.spec, bucket[op.start : op.start + op.elements]
    if not op.triangle:
        return flat.reshape([int(d) for d in spec.shape]).clone()
    whole = bucket.new_zeros(spec.size, spec.size)
    rows, columns = torch.triu_indices(spec.size, spec.size)
    whole[rows, columns] = flat
    whole[columns, rows] = flat
    return whole


def _flat(value: Tensor, spec: Spec) -> Tensor:
    """A value as a vector; of a symmetric matrix the upper triangle, row by row."""
    if not is_triangle(spec):
        return value.reshape(-1)
    rows, columns = torch.triu_indices(spec.size, spec.size)
    return value[rows, columns]
