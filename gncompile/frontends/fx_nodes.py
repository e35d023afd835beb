"""Read FX nodes: the operator's name, its arguments by name, and where it comes from in the user's model."""

from __future__ import annotations

import keyword
import re
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ..graph.nodes import Origin
from .aten import canonical

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = str(Path(__file__).parent.parent)
_FRAME = re.compile(
    r'File "(?P<file>[^"]+)", line (?P<line>\d+), in [^\n]*(?:\n\s+(?P<code>[^\n]+))?'
)


# by their other overloads, these reduce over features
_ELEMENTWISE_OVERLOADS = {("max", "other"): "maximum", ("min", "other"): "minimum"}


def op_name(node: fx.Node) -> str:
    """The canonical name in aten's tables: ``aten.relu_.default`` is ``relu``."""
    schema = getattr(node.target, "_schema", None)
    # an operator of a library of the user's may be called as one of aten's and be another
    if not schema or schema.name.split("::")[0] not in ("aten", "prims", "gncompile"):
        return str(node.target)
    name = schema.name.split("::")[-1]
    return _ELEMENTWISE_OVERLOADS.get((name, schema.overload_name)) or canonical(name)


def bind(node: fx.Node) -> dict[str, Any]:
    """All arguments of an operator under the names of its schema, defaults included."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    bound.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    return {**bound, **node.kwargs}


def origin_of(node: fx.Node) -> Origin:
    """The module that ran ``node`` and the innermost line of the user's own code that led to it."""
    return origin_of_stack(node.meta.get("stack_trace") or "", module_path(node))


def origin_of_stack(stack: str, module: str = "") -> Origin:
    """The innermost line of the user's own code in the text of a stack."""
    frames = [m for m in _FRAME.finditer(stack) if _is_user(m["file"])]
    if not frames:
        return Origin(module)
    frame = frames[-1]
    location = f"{Path(frame['file']).name}:{frame['line']}"
    return Origin(module, location, (frame["code"] or "").strip())


def origin_of_error(error: BaseException) -> Origin:
    """The innermost line of the user's own code in the error's traceback."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_user(f.filename)]
    if not frames:
        return Origin()
    frame = frames[-1]
    return Origin(location=f"{Path(frame.filename).name}:{frame.lineno}", code=frame.line or "")


def module_path(node: fx.Node) -> str:
    """``"encoder.0"``: the path of the innermost module whose forward was running."""
    paths = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    known = [path for path in paths if not path.startswith("_empty")]
    # a module called for the second time is listed as path@1
    return known[-1].split("@")[0] if known else ""


def label_of(node: fx.Node, name: str) -> str:
    """``"encoder.1.tanh"``: the module path and the operator, from which the node's name is made."""
    path = module_path(node)
    return f"{path}.{name}" if path else name


def identifier(path: str) -> str:
    """A Python identifier for a dotted path: ``encoder.0`` becomes ``encoder_0``, ``0`` ``layer_0``."""
    name = re.sub(r"\W+", "_", path).strip("_")
    if not name or name[0].isdigit():
        name = f"layer_{name}".rstrip("_")
    return f"{name}_" if keyword.iskeyword(name) else name


def _is_user(file: str) -> bool:
    generated = file.startswith(("<", "torch/"))
    return not generated and not file.startswith((_TORCH, _PACKAGE))
