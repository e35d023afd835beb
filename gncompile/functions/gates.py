"""Gates: pointwise functions of two activations, one declaration each.

Expressions call them as ``swiglu(u, v)``; derivatives and code follow from the expression as for a transfer
function. Where a model multiplies activations itself, nothing needs declaring: the product is lifted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sympy import Expr, Symbol

from ..errors import RegistrationError
from .derive import PointwiseRule, pointwise_rule
from .parsing import FUNCTIONS, parse_expression

ARGUMENTS = (Symbol("u", real=True), Symbol("v", real=True))


@dataclass(frozen=True)
class Gate:
    """``φ(u, v)``, elementwise."""

    name: str
    expression: Expr
    doc: str = field(default="", compare=False)

    def __call__(self, u: Expr, v: Expr) -> Expr:
        """The expression at ``u`` and ``v``, to be composed with others."""
        return self.expression.xreplace(dict(zip(ARGUMENTS, (u, v), strict=True)))

    @property
    def rule(self) -> PointwiseRule:
        """Its derivatives and what the backward pass keeps."""
        return pointwise_rule(self.expression, ARGUMENTS)


GATES: dict[str, Gate] = {}
"""Every declared gate by name."""


def register_gate(name: str, expression: str, *, doc: str = "") -> Gate:
    """Declare ``name`` as ``expression`` in ``u`` and ``v``, for use in expressions and model files.

    Raises :class:`RegistrationError` for a name in use, and :class:`ExpressionError` for an expression that
    cannot be derived.

    >>> register_gate("softplus_gate", "u*softplus(v)").rule.slopes
    (softplus(v), u*sigmoid(v))
    """
    if not name.isidentifier() or name in FUNCTIONS:
        raise RegistrationError(
            f"{name!r} cannot name a gate: it is "
            + ("a function already" if name in FUNCTIONS else "no identifier"),
            instead="choose another name of letters, digits and underscores",
        )
    symbols = {symbol.name: symbol for symbol in ARGUMENTS}
    gate = Gate(name, parse_expression(expression, symbols, where=f"gate {name!r}"), doc)
    _ = gate.rule
    GATES[name] = FUNCTIONS[name] = gate
    return gate
