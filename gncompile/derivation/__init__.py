"""The mathematics of a step as instructions: derivatives, curvature, damping, and what is due when."""

from . import node_rules as node_rules  # every kind of node has its rule, whichever module is imported
