"""What in a module's forward has a gradient of its own: ``autograd.Function`` classes and tensor hooks."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from .fx_nodes import origin_of_stack


class Observer(TorchFunctionMode):
    """Notes, with their places, the calls of the functions in ``watched`` while it is entered."""

    def __init__(self, watched: dict[Any, str]) -> None:
        super().__init__()
        self.watched = watched
        self.seen: dict[str, str] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.watched:
            stack = "".join(traceback.format_stack()[:-1])
            what = "torch.func" if "eager_transforms.py" in stack else self.watched[func]
            self.seen.setdefault(what, str(origin_of_stack(stack)))
        return func(*args, **(kwargs or {}))


HOOKS = {
    Tensor.register_hook: "Tensor.register_hook",
    Tensor.grad_fn.__get__: "Tensor.grad_fn",  # type: ignore[union-attr]
}


def own_functions(z: Tensor) -> list[BackwardCFunction]:
    """The nodes of user-defined Functions in the graph that autograd keeps for ``z``."""
    return [node for node in _nodes(z) if isinstance(node, BackwardCFunction)]


def _nodes(z: Tensor) -> Iterator[Any]:
    with torch._C.DisableTorchFunction():  # an Observer is to see the user's looks at it, not ours
        seen, todo = set(), [z.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        todo.extend(source for source, _ in node.next_functions)


def places_of(module: nn.Module, call: Callable[[], Tensor]) -> list[str]:
    """Where one call applies Functions and registers hooks: class, module path, and line of each."""
    path: dict[Any, str] = {}

    def claim(name: str) -> Callable[[Any, Any, Any], None]:
        def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                below = {n for x in inputs if isinstance(x, Tensor) for n in own_functions(x)}
                for node in own_functions(output):
                    if node not in below:  # inner modules end first, and keep what they claimed
                        path.setdefault(node, name)

        return hook

    handles = [m.register_forward_hook(claim(name)) for name, m in module.named_modules()]
    before = torch.is_anomaly_enabled()
    torch.autograd.set_detect_anomaly(True, check_nan=False)
    try:
        with Observer(HOOKS) as observer:
            nodes = own_functions(call())
    finally:
        torch.autograd.set_detect_anomaly(before)
        for handle in handles:
            handle.remove()
    places = [f"{what} in {where}" for what, where in observer.seen.items()]
    for node in nodes:
        kind = type(node)._forward_cls  # type: ignore[attr-defined]
        stack = "".join(node.metadata.get("traceback_", []))
        origin = origin_of_stack(stack, path.get(node, ""))
        places.append(f"torch.autograd.Function {_defined(kind)} in {origin}")
    return list(dict.fromkeys(places))


def _defined(kind: type) -> str:
    try:
        file = Path(inspect.getsourcefile(kind) or "").name
        return f"{kind.__qualname__} ({file}:{inspect.getsourcelines(kind)[1]})"
    except (OSError, TypeError):
        return kind.__qualname__
