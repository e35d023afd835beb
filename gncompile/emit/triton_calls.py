"""Pieces of text that every planned launch is written with: imports, and calls of templates."""

from __future__ import annotations

import re
from collections.abc import Sequence

IMPORTS = {
    "congruence": ("congruence",),
    "elementwise": (
        "ElementwiseSettings",
        "elementwise",
        "grouped_elementwise",
        "plan_elementwise_group",
    ),
    "gemm": ("gemm",),
    "launches": ("run",),
    "library": ("library_product",),
    "precondition": ("Layer", "grouped_precondition"),
    "random": ("Draw",),
    "reduce": ("ReduceSettings", "grouped_reduce", "plan_sums", "reduce", "softmax"),
    "sampling": ("advance", "categorical"),
    "settings": ("MatrixSettings",),
    "syrk": ("cross_moment", "syrk"),
}
"""The names a call may use, by the module of ``triton_kernels`` they come from."""

MODULES = {
    "products": "grouped_gemm",
    "moments": "grouped_syrk",
    "inverses": "inverse",
    "tiles": "pointwise_groups",
}
"""Modules whose plans and problems have equal names, as they are called."""


def imports(body: str) -> str:
    """The imports of what the text of a step uses."""
    lines = [
        f"from gncompile.triton_kernels import {module} as {name}"
        for name, module in MODULES.items()
        if re.search(rf"\b{name}\.", body)
    ]
    for module, names in IMPORTS.items():
        used = [name for name in names if re.search(rf"\b{name}[.(]", body)]
        if used:
            listed = used[0] if len(used) == 1 else f"({', '.join(used)})"
            lines.append(f"from gncompile.triton_kernels.{module} import {listed}")
    return "\n".join(lines)


PRECISION = "precision=precision"


def call(template: str, *arguments: str) -> list[str]:
    """``*template.launches(arguments)`` as lines of a list."""
    line = f"*{template}.launches({', '.join(arguments)}),"
    if len(line) <= 88:
        return [line]
    return [f"*{template}.launches(", *(f"    {argument}," for argument in arguments), "),"]


def grouped(
    template: str, plan: str, problems: Sequence[str], options: Sequence[str] = (), *words: str
) -> list[str]:
    """``*template.launches(plan([problems], options), words)``, a problem a line."""
    return [
        f"*{template}.launches(",
        f"    {plan}(",
        "        [",
        *(f"            {problem}," for problem in problems),
        "        ],",
        *(f"        {option}," for option in options),
        "    ),",
        *(f"    {word}," for word in words),
        "),",
    ]
