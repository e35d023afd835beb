"""The rules of the kinds of node that have a file of their own: importing them declares them."""

from . import pooling  # noqa: F401
