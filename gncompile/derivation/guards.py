"""Refusing a bad step on the device, for backends that run ahead of the host.

The host of a captured step learns of a broken loss many steps later. So the program itself decides: the
state ``ok`` is 1 while everything seen in this step is finite, and whatever a step overwrites keeps its old
value where ``ok`` is 0 (``Optimiser.write``). Three checks, each able to turn ``ok`` to 0:

=============  =================================================  ==========================================
phase          finite?                                            if not
=============  =================================================  ==========================================
guard          the batch; then the objective and its gradient     a bad batch is left out; a bad loss undoes
                                                                  the last update, which caused it
average        the traces of Q and Ḡ                              running averages and parameters stay
guard_step     the chosen step and its predicted change           parameters stay
guard_change   the loss that ρ looks at after the step, and not   the step is undone
               higher than before it; seen when ρ is due
=============  =================================================  ==========================================

After an update or a step that was not sound the damping rises and the momentum is dropped; after a batch
whose gradient or factors overflow, which no damping would help, it does not.

A step that nothing can be learned from (state ``learns`` 0), because its gradient or the change it predicts
is 0 to the last bit, is neither a success nor refused: parameters, dampings, momentum and averages hold, as
if the batch had not been seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import sympy

from ..base.settings import Settings
from ..functions.primitives import as_float, finite, select
from ..program import operations as ir
from ..program.builder import Value
from .damping import ROUNDING, TRIED, bounded_factor, reject
from .optimiser import CHOSEN, Optimiser

u, ok, sound, last, now = sympy.symbols("u ok sound last now", real=True)


def guard_gradient(
    optimiser: Optimiser, batch: Iterable[Value], objective: Value, gradients: Mapping[str, Value]
) -> None:
    """``ok`` and ``sound`` (is the batch finite?); after a bad loss the parameters before the last update.

    Where ``‖∇‖²`` is 0, there is nothing to learn.
    """
    builder = optimiser.builder
    sums = [builder.emit(ir.Total(), x, name="batch_sum") for x in batch]
    whole = builder.add(*sums, name="sum")
    is_sound = builder.pointwise(
        finite(u), {u: whole}, into=optimiser.scalar("sound"), name="sound_now"
    )
    sums = [objective, *(builder.emit(ir.Total(), g, name="grad_sum") for g in gradients.values())]
    total = builder.add(*sums, name="sum")
    values = {u: total, sound: is_sound, last: optimiser.unconfirmed}
    undo = builder.pointwise(
        last * sound * (1 - finite(u)), values, into=optimiser.scalar("broken"), name="undo"
    )
    values = {last: values[last], sound: is_sound}
    builder.pointwise(last * (1 - sound), values, into=optimiser.unconfirmed, name="confirmed_now")
    values = {u: total, sound: is_sound}
    is_ok = builder.pointwise(sound * finite(u), values, into=optimiser.ok, name="ok_now")
    optimiser.restore(undo)
    values = {u: optimiser.inner(gradients, gradients), ok: is_ok}
    _hold(optimiser, select(u, sympy.Integer(1), 1 - ok), values)


def guard_factors(
    optimiser: Optimiser, inputs: Mapping[str, Value], outputs: Mapping[str, Value]
) -> None:
    """``ok`` only if the traces of the batch's factors are finite; for PSD matrices that is enough."""
    builder = optimiser.builder
    traces = [
        builder.emit(ir.Trace(), factor, name="trace")
        for factor in (*inputs.values(), *outputs.values())
    ]
    values = {u: builder.add(*traces, name="sum"), ok: optimiser.ok}
    builder.pointwise(ok * finite(u), values, into=optimiser.ok, name="ok_now")


def guard_step(optimiser: Optimiser) -> None:
    """``ok`` only if the step is finite, and one at all; counts refused steps.

    Raises λ and drops the momentum after a step or an update that was not sound. Where the gradient or the
    factors overflow on this batch, no damping would help.
    """
    builder = optimiser.builder
    sizes = [optimiser.chosen(CHOSEN[role]) for role in ("predicted", "step_size")]
    whole = builder.add(*sizes, name="sum")
    values = {u: whole, ok: optimiser.ok, last: optimiser.scalar("broken")}
    broken = builder.pointwise(
        last + ok * (1 - finite(u)), values, into=optimiser.scalar("broken"), name="broken_now"
    )
    is_ok = builder.pointwise(
        ok * finite(u), {u: values[u], ok: values[ok]}, into=optimiser.ok, name="ok_now"
    )
    values = {u: optimiser.chosen(CHOSEN["predicted"]), ok: is_ok, now: _learns(optimiser)}
    is_ok, learns = _hold(optimiser, select(sympy.Abs(u), now, now * (1 - ok)), values)
    count = optimiser.scalar("refused")
    values = {last: count, ok: is_ok, now: learns}
    builder.pointwise(last + now - ok, values, into=count, name="refused_now")
    reject(optimiser, broken)


def _learns(optimiser: Optimiser) -> Value:
    """1 where there is something to learn, or where the step is refused anyway."""
    return optimiser.scalar("learns", "one")


def _hold(
    optimiser: Optimiser, learns: sympy.Expr, values: Mapping[sympy.Symbol, Value]
) -> tuple[Value, Value]:
    """``ok`` only if there is something to learn; both states."""
    builder, is_ok = optimiser.builder, values[ok]
    something = builder.pointwise(learns, values, into=_learns(optimiser), name="learns_now")
    values = {ok: is_ok, now: something}
    return builder.pointwise(ok * now, values, into=optimiser.ok, name="ok_now"), something


def guard_change(optimiser: Optimiser) -> None:
    """``ok`` only if the step did no harm; else it is undone, and counted as refused.

    λ rises then, but for a step that is not more than rounding.
    """
    builder = optimiser.builder
    undone = builder.pointwise(
        u * ok, {u: optimiser.scalar("harm"), ok: optimiser.ok}, name="undone"
    )
    builder.pointwise(ok - u, {u: undone, ok: optimiser.ok}, into=optimiser.ok, name="ok_now")
    count = optimiser.scalar("refused")
    builder.pointwise(last + u, {last: count, u: undone}, into=count, name="refused_now")
    optimiser.restore(undone)
    values = {u: undone, last: optimiser.unconfirmed}
    builder.pointwise(last * (1 - u), values, into=optimiser.unconfirmed, name="confirmed_now")
    values = {u: undone, now: optimiser.measured}
    reject(optimiser, builder.pointwise(u * now, values, name="overlong"))


REPORTED = (
    "loss",
    "objective",
    "damping",
    "step_size",
    "momentum",
    "predicted",
    "rho",
    "measured",
    "rejected",
    "noise",
)
"""The elements of the result ``report``, as :class:`~gncompile.training.records.StepStats` names them."""
ITERATED = ("products", "residual")
"""States that follow them with a solver by conjugate gradients."""


def reported(settings: Settings) -> tuple[str, ...]:
    """The elements of the report of a program with these settings."""
    return (*REPORTED, *ITERATED) if settings.iterates else REPORTED


def report(optimiser: Optimiser, loss: Value, objective: Value) -> Value:
    """What a trainer tells of a step as one vector, see :func:`reported`; ρ is that of the last check."""
    known = {"loss": loss, "objective": objective, "damping": optimiser.damping}
    known |= {"rho": optimiser.scalar("rho"), "measured": optimiser.measured}
    known |= {role: optimiser.chosen(at) for role, at in CHOSEN.items() if role in REPORTED}
    known["rejected"] = optimiser.scalar("refused")
    known["noise"] = optimiser.scalar("noise")
    known |= {role: optimiser.scalar(role) for role in ITERATED}
    roles = reported(optimiser.settings)
    return optimiser.builder.emit(ir.Stack(), *(known[role] for role in roles), name="report")


def choose_factor_damping(optimiser: Optimiser, part: str) -> None:
    """Phases that try γ, γ r and γ/r in turn [MG §6.6]: ``begin``, then ``note`` after each, then ``end``.

    Between them the host runs ``invert``, ``direction`` and the quadratic model; the γ whose step is
    predicted to be best remains, the first of those that are equal but for rounding. A prediction that is
    not finite never is the best, nor one that nothing changes: γ stays where no step is better, and while
    steps are no more than rounding.
    """
    builder, gamma = optimiser.builder, optimiser.factor_damping
    rate = sympy.Float(TRIED)
    first = optimiser.scalar("first_factor_damping")
    best, lowest = optimiser.scalar("best_factor_damping"), optimiser.scalar("lowest_predicted")
    if part == "begin":
        for state in (first, best):
            builder.pointwise(u, {u: gamma}, into=state, name=f"{state.name}_now")
        builder.emit(ir.Zeros(lowest.spec), into=lowest, name="lowest_now")
    elif part == "note":
        predicted = optimiser.chosen(CHOSEN["predicted"])
        better = select(finite(u), (1 + as_float(ROUNDING)) * last - u, sympy.Integer(0))
        values = {u: predicted, last: lowest, now: gamma, ok: best}
        builder.pointwise(select(better, now, ok), values, into=best, name="best_now")
        values = {u: predicted, last: lowest}
        builder.pointwise(select(better, u, last), values, into=lowest, name="lowest_now")
        values = {u: gamma, last: first}
        middle = (1 + rate) / 2 * last  # between γ, which is tried first, and γ r
        following = select(u - middle, rate * last, last / rate)
        builder.pointwise(following, values, into=gamma, name="gamma_now")
    else:
        chosen = select(now, bounded_factor(optimiser, u), last)
        values = {u: best, last: first, now: optimiser.measured}
        builder.pointwise(chosen, values, into=gamma, name="gamma_now")
