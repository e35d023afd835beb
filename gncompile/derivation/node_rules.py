"""The rules of all kinds of nodes, declared by importing the files they are in."""

from . import bilinear, layer_rules, normalise, softmax  # noqa: F401
