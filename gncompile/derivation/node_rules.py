"""The kinds of node with a file of their own: importing this declares their rules."""

from . import bilinear, dropout, embedding, layer_rules, normalise, softmax

__all__ = ["bilinear", "dropout", "embedding", "layer_rules", "normalise", "softmax"]
