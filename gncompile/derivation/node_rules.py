"""The rules of the kinds of node that have a file of their own: importing them declares them."""

from . import layer_rules, pooling  # noqa: F401
