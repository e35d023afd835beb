"""What is said of options that are not there, or that nothing looks at."""

from __future__ import annotations

from collections.abc import Mapping

HINTS: Mapping[str, str] = {
    **dict.fromkeys(
        ("lr", "step_size", "eta"),
        "second-order methods choose their step size; learning_rate is that of method='adam' or 'sgd'",
    ),
    **dict.fromkeys(
        ("weight_decay", "wd", "l2_reg"),
        "use l2, the coefficient η of ½ η ‖w‖² in the objective, for all parameters or by pattern",
    ),
    **dict.fromkeys(("beta", "nesterov", "dampening"), "use sgd_momentum, with method='sgd'"),
    **dict.fromkeys(
        ("betas", "eps", "amsgrad"),
        "leave it out: second-order methods need none, and method='adam' has torch's defaults; damping is "
        "what keeps inverses finite",
    ),
    **dict.fromkeys(
        ("clip", "clip_grad", "clip_norm", "max_norm", "grad_clip", "max_grad_norm"),
        "leave it out: step_growth bounds steps already, and step_cap their size along the direction",
    ),
    **dict.fromkeys(
        ("scheduler", "lr_scheduler", "lr_decay", "warmup"),
        "leave it out: the step size is chosen anew in every step, and the damping adapts",
    ),
    **dict.fromkeys(("batch_size", "batch"), "the batch is what step or fit are given"),
    **dict.fromkeys(
        ("device", "to"), "move the model before: model.to(device); the step runs where it is"
    ),
    **dict.fromkeys(("epochs", "updates", "steps"), "give it to fit"),
    **dict.fromkeys(("optimiser", "optimizer"), "use method"),
    "exact_damping": "use inverse='eigen'",
}
"""What to say of options that others have and these do not."""

FACTORED = frozenset({
    "sharing", "samples", "trace_correction", "factor_samples", "whole_inputs", "factor_average",
    "factor_damping_period", "inverse", "refresh_every", "refresh_always",
})  # fmt: skip
"""Options of the Kronecker factors, which no other solver looks at."""

IDLE: Mapping[str, Mapping[str, tuple[object, str]]] = {
    "kronecker": {"exact_form": ("auto", "exact")},
    "exact": {"factor_share": (1.0, "kronecker"), "factors_every": (1, "kronecker")},
}
"""Options that a solver does not look at: the value that says nothing, and a solver that does look at it."""
