"""Optical flow: a network of coordinates whose displacement brings one image onto another.

Run it: ``pip install scikit-image``, then ``python examples/optical_flow.py``. The energy is that of Horn and
Schunck (*Determining optical flow*, 1981) with a loss that forgives occlusions and edges (Black and Anandan,
*The robust estimation of multiple motions*, 1996)::

    E(θ) = ∫ ρ(I₂(x + u(x)) − I₁(x)) + ρ(α ∇u(x)) dx,     ρ(r) = δ² (√(1 + (r/δ)²) − 1)

where x + u(x) lies in the second image, and else of ∇u alone. These are equations of ``gncompile.residuals``:
the images are grids that they read where the network says, ∇u is the network's own derivative, and each step
draws places anew, anywhere between the pixels. Steps are Gauss-Newton's. Images are blurred, less and less,
and each blur goes on with the last network.

The pairs are a warped face (in the folder GNCOMPILE_DATA), whose displacement is known, and ``motorcycle``
of Middlebury's stereo benchmark, which scikit-image brings, in grey. The numbers below serve both:
intensities are counted in standard deviations, lengths in parts of the image. They were chosen on other faces
and on patchworks of other pictures, not by the true displacement of these two.
"""

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor, nn

import gncompile
from gncompile import Box, Grid, Term
from gncompile.app.residuals import Problem

ALPHA = 0.3
"""The weight α of smoothness."""
DELTA = 0.1
"""From this residual on a difference counts less: δ, in standard deviations of the first image."""
COARSEST, FINEST = 1 / 32, 0.5
"""The first blur, as a part of the image's longer side, and the last one, in pixels; each halves the last."""
POINTS = 2048
"""Places that a step looks at."""


@dataclass
class Pair:
    """``one(x) = two(x + truth(x))`` at the pixels that are ``known``: grey images ``[H, W]``."""

    name: str
    one: np.ndarray
    two: np.ndarray
    truth: np.ndarray  # [H, W, 2]: rows, columns
    known: np.ndarray
    axes: str  # along which anything moves: of "ij", rows and columns

    @property
    def size(self) -> int:
        """The longer side."""
        return max(self.known.shape)


def motorcycle() -> Pair:
    """Seen from two places side by side: every pixel of the left image moves to the left."""
    from skimage import data

    *images, disparity = data.stereo_motorcycle()
    left, right = (image.mean(axis=-1) / 255 for image in images)
    known = np.isfinite(disparity) & (disparity > 0)
    truth = np.stack([np.zeros_like(disparity), -disparity], axis=-1)
    return Pair("motorcycle", left, right, truth, known, "j")


def warped_face(number: int = 0, size: float = 3.0, seed: int = 0) -> Pair:
    """A face, and what a smooth displacement of at most ``size`` pixels makes of it."""
    folder = Path(os.environ["GNCOMPILE_DATA"]) / "faces"
    faces = loadmat(str(folder / "olivettifaces.mat"))["faces"]
    face = faces[:, 10 * number].reshape(64, 64, order="F") / 255
    draw = np.random.default_rng(seed)
    truth = gaussian_filter(draw.standard_normal((64, 64, 2)), (10, 10, 0), mode="reflect")
    truth *= size / np.abs(truth).max()
    at = np.moveaxis(np.stack(np.mgrid[:64, :64], axis=-1) + truth, -1, 0)
    one = map_coordinates(face, at, order=3, mode="nearest")
    return Pair("face", one, face, truth, np.ones((64, 64), bool), "ij")


class Flow(nn.Module):
    """From places ``[N, 2]`` in pixels to displacements ``[N, axes]``, by sines of random frequencies."""

    frequencies: Tensor

    def __init__(self, size: int, axes: int, features: int = 32, width: int = 64) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("frequencies", 2 * torch.randn(2, features))
        self.net = nn.Sequential(
            nn.Linear(2 + 2 * features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
            nn.Linear(width, axes),
        )  # fmt: skip

    def forward(self, places: Tensor) -> Tensor:
        x = 2 * places / self.size - 1
        phases = x @ self.frequencies
        return self.size / 20 * self.net(torch.cat([x, phases.sin(), phases.cos()], dim=-1))


def blurs(size: int) -> list[float]:
    """From coarse to fine."""
    found = [size * COARSEST]
    while found[-1] > FINEST:
        found.append(max(found[-1] / 2, FINEST))
    return found


def problem_of(flow: Flow, pair: Pair, blur: float) -> Problem:
    """The energy of two images that are blurred."""
    inside = torch.ones(pair.known.shape, dtype=torch.float64)
    grids = {"inside": Grid(inside, padding="zeros")}
    for name in ("one", "two"):
        image = gaussian_filter(getattr(pair, name) / pair.one.std(), blur, mode="nearest")
        grids[name] = Grid(torch.from_numpy(image), mode="cubic")
    there = ", ".join(f"{x} + u{x}" if x in pair.axes else x for x in "ij")
    data = f"inside({there})*(two({there}) - one(i, j))"
    smooth = [f"{ALPHA}*u{axis}__{x}" for axis in pair.axes for x in "ij"]
    box = Box({x: (0, size - 1) for x, size in zip("ij", pair.known.shape, strict=True)})
    energy = Term([data, *smooth], box.interior(POINTS), loss="soft_l1", scale=DELTA)
    outputs = [f"u{axis}" for axis in pair.axes]
    return gncompile.residuals(flow, "i j", outputs, {"energy": energy}, grids=grids)


def displacement(flow: Flow, pair: Pair) -> np.ndarray:
    """``[H, W, 2]``, at all pixels."""
    pixels = torch.from_numpy(np.argwhere(np.ones_like(pair.known)))
    u = np.zeros(pair.truth.shape)
    with torch.no_grad():
        found = torch.cat([flow(part.to(flow.frequencies)) for part in pixels.split(1 << 16)])
    u[..., ["ij".index(axis) for axis in pair.axes]] = found.reshape(*pair.known.shape, -1)
    return u


def end_point_error(u: np.ndarray, pair: Pair) -> float:
    """The mean distance to the true displacement, in pixels."""
    return float(np.linalg.norm(u - pair.truth, axis=-1)[pair.known].mean())


Curve = list[tuple[float, float]]


def solve(
    pair: Pair, updates: int, method: str | None = None, **options: object
) -> tuple[np.ndarray, Curve]:
    """The flow after so many ``updates`` with each blur, and the errors by seconds of the processor."""
    torch.manual_seed(0)
    flow, seconds, curve = Flow(pair.size, len(pair.axes)).double(), 0.0, []
    for blur in blurs(pair.size):
        begun = time.process_time()
        trainer = problem_of(flow, pair, blur).compile(method, **options)
        trainer.fit(updates=updates, resample_every=1, progress=False, validation=None)
        seconds += time.process_time() - begun
        error = end_point_error(displacement(flow, pair), pair)
        energy = trainer.terms()["energy"]
        print(
            f"  blur {blur:>4.1f}: E = {energy:.5f}, {error:.3f} px after {seconds:.1f} s",
            flush=True,
        )
        curve.append((seconds, error))
    return displacement(flow, pair), curve


def by_scikit_image(pair: Pair) -> dict[str, np.ndarray]:
    """TV-L1 and iterative Lucas-Kanade of scikit-image, around their defaults, at full and half size."""
    from skimage.registration import optical_flow_ilk, optical_flow_tvl1
    from skimage.transform import rescale, resize

    methods = {f"TV-L1, {a}": partial(optical_flow_tvl1, attachment=a) for a in (5, 15, 45)}
    methods |= {f"iLK, {r}": partial(optical_flow_ilk, radius=r) for r in (4, 7, 14)}
    found = {}
    for scale in (1.0, 0.5):
        one, two = (
            rescale(image.astype(np.float32), scale, anti_aliasing=scale < 1)
            for image in (pair.one, pair.two)
        )
        for name, method in methods.items():
            u = resize(np.moveaxis(method(one, two), 0, -1) / scale, pair.truth.shape, order=1)
            found[f"{name}, size {scale:g}"] = u * [axis in pair.axes for axis in "ij"]
    return found


def picture(pair: Pair, flows: dict[str, np.ndarray], curves: dict[str, Curve], path: Path) -> None:
    """The images, displacements by colour, and errors over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"truth": np.where(pair.known[..., None], pair.truth, np.nan), **flows}
    size = 4 * len(shown) + 8, 3.4
    figure, axes = pyplot.subplots(1, len(shown) + 2, figsize=size, layout="constrained")
    axes[0].imshow(pair.one, cmap="gray")
    axes[0].set_title("first image")
    most = np.nanmax(np.abs(shown["truth"][..., 1]))
    for axis, (name, u) in zip(axes[1:-1], shown.items(), strict=True):
        axis.imshow(u[..., 1], cmap="coolwarm", vmin=-most, vmax=most)
        error = "" if name == "truth" else f"\n{end_point_error(u, pair):.2f} px"
        axis.set_title(name + error)
    for axis in axes[:-1]:
        axis.set_axis_off()
    for name, points in curves.items():
        axes[-1].plot(*zip(*points, strict=True), marker="o", label=name)
    axes[-1].set(xlabel="seconds of the processor", ylabel="end-point error [px]", yscale="log")
    axes[-1].legend()
    figure.savefig(path, dpi=80, bbox_inches="tight")
    print(f"  wrote {path}")


def compare(pair: Pair, updates: int, first_order: int, folder: Path) -> dict[str, float]:
    """Errors of the network, trained by Gauss-Newton and by Adam, and of scikit-image's methods."""
    print(f"{pair.name}: {' × '.join(map(str, pair.known.shape))} pixels")
    flows, curves = {}, {}
    flows["Gauss-Newton"], curves["Gauss-Newton"] = solve(pair, updates)
    for rate in (1e-3, 3e-3, 1e-2):
        name = f"Adam {rate:g}"
        print(f"  {name}")
        flows[name], curves[name] = solve(pair, first_order, method="adam", learning_rate=rate)
    others = by_scikit_image(pair)
    errors = {name: end_point_error(u, pair) for name, u in {**flows, **others}.items()}
    for name, error in errors.items():
        print(f"  {name:<20} {error:.3f} px")
    best = min(others, key=errors.__getitem__)
    shown = {"Gauss-Newton": flows["Gauss-Newton"], best: others[best]}
    picture(pair, shown, curves, folder / f"flow_{pair.name}.png")
    return errors


def main(folder: Path) -> None:
    """Both pairs; Adam gets as many updates as take about as long."""
    for pair in (warped_face(), motorcycle()):
        compare(pair, 30, 60, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
