"""What is said of options that are not there, or that nothing looks at."""

from __future__ import annotations

from collections.abc import Mapping

GROUPS: Mapping[str, str] = {
    "method": "objective and curvature",
    "damping": "damping and inverses",
    "momentum": "the step",
    "gather_samples": "batches",
    "guarded": "execution",
    "learning_rate": "first-order baselines",
}
"""The groups of the options, each by its first one, in the order of ``Settings``."""

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

Said = Mapping[str, tuple[object, str]]
_FORM: Said = {"exact_form": ("auto", "solver='exact'")}
_BLOCKS: Said = {"blocks": ("layers", "solver='block_hessian_free'")}
_PRODUCTS: Said = {
    **_BLOCKS,
    "curvature_share": (0.25, "solver='newton_cg'"),
    "cg_iterations": (10, "solver='newton_cg'"),
    "cg_tolerance": (0.0, "solver='newton_cg'"),
    "warm_start": (True, "solver='newton_cg'"),
    "preconditioner": ("none", "solver='newton_cg'"),
}
_SHARE: Said = {"factor_share": (0.25, "curvature_share")}
IDLE: Mapping[str, Said] = {
    "kronecker": {**_FORM, **_PRODUCTS},
    "exact": {
        "factor_share": (1.0, "solver='kronecker'"),
        "factors_every": (1, "solver='kronecker'"),
        **_PRODUCTS,
    },
    "block_hessian_free": {**_FORM, **_SHARE},
    "newton_cg": {**_FORM, **_SHARE, **_BLOCKS},
}
"""Options that a solver does not look at: the value that says nothing, and who does look at it."""
