"""The rules of all kinds of nodes, declared by importing the files they are in."""

from . import layer_rules  # noqa: F401
