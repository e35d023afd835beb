"""What the methods that train a layer are, in a word and in a sentence."""

UNCOVERED = "diagonal"
"""What trains parameters that no curvature rule covers, beside any second-order method."""

METHODS = {
    UNCOVERED: "Adam's diagonal, with a step size of the quadratic model",
    "kfra": "one matrix for the batch, averaged at every pointwise layer [BRB §3.3]",
    "kflr": "the columns of a root of the output Hessian, exact Ḡ [BRB §3.2]",
    "kfac": "gradients of targets sampled from the model [MG §3]",
    "kfac_rp": "random ±1 projections of a root of the output Hessian",
    "empirical": "the training gradients themselves",
    "exact": "the whole Gauss-Newton matrix of the batch, unfactored",
    "block_hessian_free": "conjugate gradients with each block of the Gauss-Newton matrix",
    "newton_cg": "conjugate gradients with the whole Gauss-Newton matrix",
    "adam": "no curvature",
    "sgd": "no curvature",
}

RULES = {
    UNCOVERED: "first-order",
    "kfra": "averaged",
    "kflr": "exact",
    "kfac": "sampled",
    "kfac_rp": "sampled",
    "empirical": "empirical",
    "exact": "whole",
    "block_hessian_free": "products",
    "newton_cg": "products",
    "adam": "first-order",
    "sgd": "first-order",
}
"""What each method's Ḡ is, in a word; other solvers have the matrix itself, or products with it."""
