"""Registration: a smooth deformation that brings a face onto another face, and a digit onto another digit.

Run it: ``python examples/registration.py``. Faces and digits are looked for in the folder GNCOMPILE_DATA; the
example needs scipy, and matplotlib for its pictures. A network of coordinates gives the displacement u. With
the elastic penalty of medical imaging (Modersitzki, *Numerical methods for image registration*, 2004, ch. 9)
the energy of a moving image M and a fixed one F is::

    E(θ) = ½ mean (M(x + u(x)) − F(x))² + α² (|∇u|² + (div u)²)

These are equations of ``gncompile.residuals``: the images are grids that they read where the network says, ∇u
is the network's own derivative, and the compiled steps are Gauss-Newton's. What is told of a result:
the sum of squared differences (SSD) before and after, the overlap of what is bright in both images (Dice),
and the share of pixels where x + u(x) folds: det(1 + ∇u) ≤ 0, exactly.
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

import gncompile
from gncompile import Grid, Term
from gncompile.data import DataSpec, load


@dataclass
class Registered:
    """What a deformation has made of an image, and of the pixels' grid."""

    image: np.ndarray
    u: np.ndarray
    ssd: tuple[float, float]
    dice: tuple[float, float]
    folded: float


class Displacement(nn.Module):
    """From pixels ``[N, 2]`` to displacements ``[N, 2]``, of sines of random frequencies; none at first."""

    frequencies: Tensor

    def __init__(self, size: int, features: int = 16, width: int = 48) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("frequencies", torch.randn(2, features))
        self.net = nn.Sequential(
            nn.Linear(2 + 2 * features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
            nn.Linear(width, 2),
        )  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)
        nn.init.zeros_(self.net[-1].bias)

    def forward(self, pixels: Tensor) -> Tensor:
        x = 2 * pixels / self.size - 1
        phases = x @ self.frequencies
        return self.size / 10 * self.net(torch.cat([x, phases.sin(), phases.cos()], dim=-1))


def register(
    moving: np.ndarray, fixed: np.ndarray, alpha: float, updates: int = 60, **options: object
) -> Registered:
    """Bring ``moving`` onto ``fixed``, images of one size in [0, 1], blurred first and then as they are."""
    torch.manual_seed(0)
    net, pixels = Displacement(len(fixed)).double(), torch.from_numpy(np.argwhere(fixed > -1))
    slopes = [f"{alpha}*({each})" for each in ("u__i", "u__j", "v__i", "v__j", "u__i + v__j")]
    terms = {"energy": Term(["moving(i + u, j + v) - fixed(i, j)", *slopes], pixels.double())}
    begun = time.perf_counter()
    for blur in (len(fixed) / 16, len(fixed) / 32, 0):
        grids = {
            name: Grid(torch.from_numpy(gaussian_filter(image, blur, mode="nearest")), mode="cubic")
            for name, image in (("moving", moving), ("fixed", fixed))
        }
        problem = gncompile.residuals(net, "i j", "u v", terms, grids=grids)
        trainer = problem.compile(**options)
        trainer.fit(updates=updates, progress=False)
        energy = trainer.terms()["energy"]
        print(f"  blur {blur:.1f}: {energy:.5f} after {time.perf_counter() - begun:.1f} s")
    jacobian = "(1 + u__i)*(1 + v__j) - u__j*v__i"
    found = problem.evaluate(pixels.double(), ["u", "v", "moving(i + u, j + v)", jacobian])
    u, v, image, det = (each.reshape(fixed.shape).numpy() for each in found.values())
    ssd = tuple(float(((each - fixed) ** 2).sum()) for each in (moving, image))
    bright = fixed > fixed.mean()
    shapes = (each > fixed.mean() for each in (moving, image))
    dice = tuple(float(2 * (s & bright).sum() / (s.sum() + bright.sum())) for s in shapes)
    return Registered(image, np.stack([u, v], axis=-1), ssd, dice, float((det <= 0).mean()))


def faces() -> tuple[np.ndarray, np.ndarray]:
    """Two people, 64 × 64 pixels."""
    path = Path(os.environ["GNCOMPILE_DATA"]) / "faces" / "olivettifaces.mat"
    images = loadmat(str(path))["faces"].T.reshape(400, 64, 64).transpose(0, 2, 1) / 255
    return images[10], images[30]


def digits(label: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Two digits of one kind, by different hands."""
    data = load(DataSpec("mnist", train=100, validation=1))
    found = data.train_x[data.train_y == label][:2].reshape(2, 28, 28).double().numpy()
    return found[0], found[1]


def show(name: str, moving: np.ndarray, fixed: np.ndarray, found: Registered, folder: Path) -> None:
    """The figures, and a picture of images and deformed grid."""
    print(f"{name}: SSD {found.ssd[0]:.2f} -> {found.ssd[1]:.2f}, "
          f"Dice {found.dice[0]:.3f} -> {found.dice[1]:.3f}, det J <= 0 at {found.folded:.2%}")  # fmt: skip
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 4, figsize=(13, 3.4))
    titles = ("moving", "moved", "fixed")
    for axis, title, image in zip(axes, titles, (moving, found.image, fixed), strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title)
    at = np.stack(np.mgrid[: len(fixed), : len(fixed)], axis=-1) + found.u
    for line in (*at[::3], *at[:, ::3].swapaxes(0, 1)):
        axes[3].plot(line[:, 1], line[:, 0], "k", linewidth=0.6)
    axes[3].invert_yaxis()
    axes[3].set_aspect("equal")
    axes[3].set_title("where pixels come from")
    for axis in axes:
        axis.set_axis_off()
    figure.savefig(folder / f"registration_{name}.png", dpi=80, bbox_inches="tight")
    print(f"  wrote {folder / f'registration_{name}.png'}")


def main(folder: Path) -> None:
    """A face onto a face, and a digit onto a digit."""
    for name, (moving, fixed), alpha in (("faces", faces(), 0.2), ("digits", digits(), 0.1)):
        show(name, moving, fixed, register(moving, fixed, alpha), folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
