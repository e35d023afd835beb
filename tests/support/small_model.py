"""A model file of a small autoencoder and its data, for tests of whole commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np

HEAD = """
[model]
name = "small"
[data]
name = "images.npz"
target = "input"
[network]
layers = [9, 6, 3, 6, 9]
code_layer = 2
[loss]
name = "bce_with_logits"
[training]
batch_size = 16
updates = 30
seed = 1
"""
"""Ends within ``[training]``, so that a test may go on."""


def write_model(folder: Path, text: str = HEAD) -> Path:
    """A model file with that text beside images of 3×3 pixels that two numbers describe."""
    random = np.random.default_rng(0)
    images = random.uniform(size=(80, 3, 1)) * random.uniform(size=(80, 1, 3))
    np.savez(folder / "images.npz", x=images.astype(np.float32))
    path = folder / "model.toml"
    path.write_text(text)
    return path


def curves_model(
    folder: Path, width: int, code: int, samples: int = 40, options: str = "", loss: str = "mse"
) -> Path:
    """A model file of a linear autoencoder of CURVES, two updates long; ``options`` end ``[training]``."""
    path = folder / "model.toml"
    path.write_text(
        f"""
[model]
name = "small"
[data]
name = "curves"
target = "input"
[network]
layers = [{width}, {code}, {width}]
[loss]
name = "{loss}"
[training]
batch_size = {samples}
updates = 2
{options}"""
    )
    return path
