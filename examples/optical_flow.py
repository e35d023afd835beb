"""Optical flow: a network of coordinates whose displacement brings one image onto another.

Run it: ``pip install scikit-image``, then ``python examples/optical_flow.py``. The energy is that of Horn and
Schunck (*Determining optical flow*, 1981) with penalties that forgive occlusions and edges (Black and
Anandan, *The robust estimation of multiple motions*, 1996)::

    E(θ) = ∫ ρ(I₂(x + u(x)) − I₁(x)) + ρ(α ∇u(x)) dx,     ρ(r) = √(r² + ε²) − ε, an ε for each

These are equations of ``gncompile.residuals``: the images are grids that they read where the network says,
∇u is the network's own derivative, and each step draws places anew, anywhere between the pixels. Steps are
Gauss-Newton's. Images are blurred, less and less, and each blur goes on with the last network. The pairs are
a warped face (in the folder GNCOMPILE_DATA), whose displacement is known, and ``motorcycle`` of
Middlebury's stereo benchmark, which scikit-image brings. Each has the α of 0.01 to 0.3 whose error against
the true displacement is least; scikit-image's methods have their defaults, and grey images.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor, nn

import gncompile
from gncompile import Box, Grid, Term
from gncompile.app.residuals import Problem


@dataclass
class Pair:
    """``one(x) = two(x + truth(x))`` at the pixels that are ``known``: images ``[H, W, C]`` in [0, 1]."""

    name: str
    one: np.ndarray
    two: np.ndarray
    truth: np.ndarray  # [H, W, 2]: rows, columns
    known: np.ndarray
    axes: str  # along which anything moves: of "ij", rows and columns
    blurs: Sequence[float]
    scale: float  # a large displacement, in pixels
    frequency: float
    points: int
    alpha: float


def motorcycle() -> Pair:
    """Seen from two places side by side: every pixel of the left image moves to the left."""
    from skimage import data

    left, right, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity) & (disparity > 0)
    truth = np.stack([np.zeros_like(disparity), -disparity], axis=-1)
    blurs = (16, 8, 4, 2, 1, 0)
    return Pair(
        "motorcycle", left / 255, right / 255, truth, known, "j", blurs, 30.0, 3.0, 2048, 0.3
    )


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
    known, blurs = np.ones((64, 64), bool), (2, 1, 0)
    return Pair(
        "face", one[..., None], face[..., None], truth, known, "ij", blurs, 3.0, 1.0, 4096, 0.03
    )


class Flow(nn.Module):
    """From places ``[N, 2]`` in pixels to displacements ``[N, axes]``, by sines of random frequencies."""

    frequencies: Tensor

    def __init__(self, pair: Pair, features: int = 32, width: int = 64) -> None:
        super().__init__()
        self.half, self.scale = max(pair.one.shape[:2]) / 2, pair.scale
        self.register_buffer("frequencies", pair.frequency * torch.randn(2, features))
        self.net = nn.Sequential(
            nn.Linear(2 + 2 * features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
            nn.Linear(width, len(pair.axes)),
        )  # fmt: skip

    def forward(self, places: Tensor) -> Tensor:
        x = places / self.half - 1
        phases = x @ self.frequencies
        return self.scale * self.net(torch.cat([x, phases.sin(), phases.cos()], dim=-1))


def robust(r: str, eps: float) -> str:
    """A residual whose half square is ρ(r): the signed root of 2 ρ(r)."""
    return f"({r})*sqrt(2/(sqrt(({r})**2 + {eps}**2) + {eps}))"


def problem_of(flow: Flow, pair: Pair, blur: float) -> Problem:
    """The energy of two images that are blurred."""
    grids = {}
    for name in ("one", "two"):
        image = gaussian_filter(getattr(pair, name), (blur, blur, 0), mode="nearest")
        for channel, values in enumerate(torch.from_numpy(image).unbind(-1)):
            grids[f"{name}{channel}"] = Grid(values, mode="cubic")
    there = ", ".join(f"{x} + u{x}" if x in pair.axes else x for x in "ij")
    data = [robust(f"two{c}({there}) - one{c}(i, j)", 0.02) for c in range(len(grids) // 2)]
    smooth = [robust(f"{pair.alpha}*u{axis}__{x}", 0.1) for axis in pair.axes for x in "ij"]
    box = Box({x: (0, size - 1) for x, size in zip("ij", pair.known.shape, strict=True)})
    terms = {"energy": Term([*data, *smooth], box.interior(pair.points))}
    return gncompile.residuals(flow, "i j", [f"u{axis}" for axis in pair.axes], terms, grids=grids)


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
    """The flow after so many ``updates`` with each blur, and the errors by seconds."""
    torch.manual_seed(0)
    flow, seconds, curve = Flow(pair).double(), 0.0, []
    for blur in pair.blurs:
        begun = time.perf_counter()
        trainer = problem_of(flow, pair, blur).compile(method, **options)
        trainer.fit(updates=updates, resample_every=1, progress=False, validation=None)
        seconds += time.perf_counter() - begun
        error = end_point_error(displacement(flow, pair), pair)
        print(f"  blur {blur:>2}: error {error:.3f} px after {seconds:.1f} s", flush=True)
        curve.append((seconds, error))
    return displacement(flow, pair), curve


def by_scikit_image(pair: Pair) -> dict[str, np.ndarray]:
    """TV-L1 and iterative Lucas-Kanade as scikit-image has them, on grey images of full and half size."""
    from skimage import registration
    from skimage.transform import rescale, resize

    found = {}
    for name in ("tvl1", "ilk"):
        flow = getattr(registration, f"optical_flow_{name}")
        for scale in (1.0, 0.5):
            one, two = (
                rescale(image.mean(-1).astype(np.float32), scale, anti_aliasing=scale < 1)
                for image in (pair.one, pair.two)
            )
            u = np.moveaxis(flow(one, two), 0, -1) / scale
            whole = resize(u, pair.truth.shape, order=1)
            found[f"{name}, scale {scale:g}"] = whole * [axis in pair.axes for axis in "ij"]
    return found


def picture(pair: Pair, flows: dict[str, np.ndarray], curves: dict[str, Curve], path: Path) -> None:
    """The images, displacements by colour, and errors over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {"truth": np.where(pair.known[..., None], pair.truth, np.nan), **flows}
    figure, axes = pyplot.subplots(1, len(shown) + 2, figsize=(4 * len(shown) + 8, 3.4))
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
    axes[-1].set(xlabel="seconds", ylabel="end-point error [px]", yscale="log")
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
        print(f"  {name:<16} {error:.3f} px")
    best = min(others, key=errors.__getitem__)
    shown = {"Gauss-Newton": flows["Gauss-Newton"], best: others[best]}
    picture(pair, shown, curves, folder / f"flow_{pair.name}.png")
    return errors


def main(folder: Path) -> None:
    """Both pairs; Adam gets as many updates as take about as long."""
    compare(warped_face(), 15, 50, folder)
    compare(motorcycle(), 40, 100, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
