"""The kinds of node that come in files of their own: importing this declares their rules."""

from . import bilinear, normalise, softmax

__all__ = ["bilinear", "normalise", "softmax"]
