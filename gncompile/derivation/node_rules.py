"""The rules of all kinds of nodes, declared by importing the files they are in."""

from . import convolution, layer_rules, pooling  # noqa: F401
