"""One page about one transfer function: what was declared, what is derived, what kind of function it is."""

from __future__ import annotations

import math

from ..emit.torch_statements import torch_statements
from ..functions.classification import classify
from ..functions.transfer import TransferFunction, transfer


def transfer_page(name: str | TransferFunction, **parameters: float) -> str:
    """The expression, its derivatives, what the backward pass keeps, its properties and the code for torch.

    ``name`` is a registered name, with ``parameters`` in place of its defaults, or a function itself. Raises
    :class:`~gncompile.errors.ExpressionError` for an unknown name or parameter.

    >>> print(transfer_page("relu").splitlines()[0])
    relu: max(x, 0); slope 0 at the kink
    """
    function = transfer(name) if isinstance(name, str) else name
    function = function.at(**parameters)
    rule = function.rule
    low, high = function.domain
    everywhere = math.isinf(low) and math.isinf(high)
    sections = [
        f"{function}: {' '.join(function.doc.split())}" if function.doc else str(function),
        "",
        f"declared at        {function.declared_at}",
        f"domain             {'all numbers' if everywhere else f'{low:g} < x < {high:g}'}",
        f"value        f     {rule.value}",
        f"slope        f'    {rule.slopes[0]}",
        f"second       f''   {rule.seconds[0, 0]}",
        f"kept               {_kept(function)}: {rule.why}",
        "",
        *classify(function).lines(),
        "",
        "In torch, a = f(h) forwards and b = f'(h) backwards:",
        "",
        *(f"    {line}".rstrip() for line in _code(function)),
    ]
    return "\n".join(sections)


def _kept(function: TransferFunction) -> str:
    kept = function.rule.kept_slopes[0]
    reads = {"nothing": "nothing", "input": "x", "output": "f", "both": "x and f"}
    slope = str(kept.xreplace({function.rule.output: function.argument.func("f", real=True)}))
    return f"{reads[function.rule.keeps]}, f' = {slope}"


def _code(function: TransferFunction) -> list[str]:
    """The statements of both passes; scratch tensors are ``t0``, ``t1``, …"""
    rule, names = function.rule, {function.argument: "h", function.rule.output: "a"}

    def scratch(number: int) -> str:
        return f"t{number}"

    read = {s: names[s] for s in rule.kept_slopes[0].free_symbols if s in names}
    forward = torch_statements(rule.value, {function.argument: "h"}, "a", scratch)
    return [*forward, "", *torch_statements(rule.kept_slopes[0], read, "b", scratch)]
