"""The kinds of node with a file of their own: importing this declares their rules."""

from . import dropout

__all__ = ["dropout"]
