"""A CUDA device without a GPU: tensors of the host that say they are on ``cuda:0``.

What torch refuses of tensors on a GPU is refused of these: to be mixed with tensors of the host, but for
copies, single numbers and indices, and to become arrays. Everything is computed by the host, so values are
right. Nothing is captured: a graph is run each time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves, tree_map

from gncompile.frontends import torch_export
from gncompile.runtime.graphs import Graphs

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
OWN = ("device", "is_cuda", "is_cpu", "_is_param")
"""Attributes that are not those of the tensor inside."""
ARRAYS = ("numpy", "__array__", "__dlpack__")
INDEXED = ("__getitem__", "__setitem__", "index_put_")
"""Take indices of the host for tensors on a device."""


class OnCuda(Tensor):
    """A tensor that says it is on the device; ``inner`` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCuda:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=CUDA)
        made.inner = inner
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} was reached past the functions of torch")


class Seen(TorchFunctionMode):
    """Sees what makes tensors on the device of none that are there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """A function of torch's, of the tensors inside, with its results where a GPU would have them."""
    name, given = getattr(func, "__name__", ""), tree_leaves((args, kwargs))
    there = any(isinstance(each, OnCuda) for each in given)
    own = name in ("__get__", "__set__") and getattr(func.__self__, "__name__", "") in OWN
    if own or func is torch.device or name == "_parse_to":
        with torch._C.DisableTorchFunction():
            return func(*args, **kwargs)
    if there and name in ARRAYS:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    moved = name in ("to", "cpu", "cuda", "tensor", "as_tensor")
    if there and not moved and name not in ("copy_", "new_tensor"):
        require_there(args[:1] if name in INDEXED else given)
    asked = [torch.device(d) for each in given if (d := as_device(each)) is not None]
    asked += [each.device for each in args[1:2] if name == "to" and isinstance(each, Tensor)]
    on = asked[0].type == "cuda" if asked and (moved or "device" in kwargs) else there
    on = on and name != "cpu"
    known = {id(each.inner): each for each in given if isinstance(each, OnCuda)}

    def out(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, OnCuda):
            return value
        if id(value) in known and on:
            return known[id(value)]
        return OnCuda(value) if on else value

    found = func(*inside(args), **inside(kwargs))
    if moved and there != on and isinstance(found, Tensor):
        found = found.clone()  # a copy to another device is never the tensor itself
    return tree_map(out, found)


def as_device(value: object) -> object:
    """The device that an argument names, if it does."""
    named = isinstance(value, str) and value.partition(":")[0] in ("cpu", "cuda")
    return value if named or isinstance(value, torch.device) else None


def inside(value: Any) -> Any:
    """With what the host has in the place of what is on the device."""

    def of(each: Any) -> Any:
        if isinstance(each, OnCuda):
            return each.inner
        return CPU if as_device(each) is not None else each

    return tree_map(of, value)


def require_there(value: Any) -> None:
    """Raise, as torch does, for a tensor of the host with more than a number in it."""
    for each in tree_leaves(value):
        if isinstance(each, Tensor) and not isinstance(each, OnCuda) and each.dim():
            raise RuntimeError(
                "Expected all tensors to be on the same device, found cuda:0 and cpu"
            )


def exported(export: Any, module: nn.Module, examples: tuple[Tensor, ...]) -> Any:
    """What ``torch.export``, which only knows tensors that are, makes of the module on the host."""
    host = copy.deepcopy(
        module, {id(p): nn.Parameter(inside(p.detach())) for p in module.parameters()}
    )
    with _pop_mode_temporarily():
        return export(host, inside(examples))


class OfHost(torch.Generator):
    """A generator of the host, whatever device it is asked for."""

    def __new__(cls, device: object = "cpu") -> OfHost:
        return super().__new__(cls)


@contextmanager
def pretended(patch: pytest.MonkeyPatch, gpus: int = 1) -> Iterator[None]:
    """Within this block torch has that many GPUs."""
    room = {"mem_get_info": (1 << 40, 1 << 40), "memory_reserved": 0, "memory_allocated": 0}
    for name, value in {"is_available": True, "device_count": gpus, **room}.items():
        patch.setattr(torch.cuda, name, lambda *given, value=value: value)
    patch.setattr(torch.cuda, "get_device_name", lambda *given: "pretended")
    patch.setattr(torch.cuda, "set_device", lambda index: None)
    patch.setattr(torch.cuda, "device", lambda device: nullcontext())
    patch.setattr(torch, "_has_compatible_shallow_copy_type", lambda *given: False)
    patch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    patch.setattr(torch, "Generator", OfHost)
    patch.setattr(Graphs, "run", lambda graphs, plan: graphs._executable.run(*plan))
    export = torch_export._export
    patch.setattr(torch_export, "_export", lambda *given: exported(export, *given))
    with Seen():
        yield
