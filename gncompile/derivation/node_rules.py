"""The kinds of node with a file of their own: importing this declares their rules."""

from . import dropout, embedding, layer_rules

__all__ = ["dropout", "embedding", "layer_rules"]
