"""The kinds of node that come in files of their own: importing this declares their rules."""

from . import normalise, softmax

__all__ = ["normalise", "softmax"]
