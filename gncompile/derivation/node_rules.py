"""The kinds of node with a file of their own: importing this declares their rules."""

from . import (  # noqa: F401
    bilinear,
    convolution,
    dropout,
    embedding,
    interpolate,
    layer_rules,
    normalise,
    pooling,
    softmax,
)  # fmt: skip
