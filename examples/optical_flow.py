"""Optical flow: a network of coordinates whose displacement brings one image onto another.

Run it: ``pip install scikit-image``, then ``python examples/optical_flow.py``. The energy is that of Horn and
Schunck (*Determining optical flow*, 1981) with penalties that forgive occlusions and edges (Black and
Anandan, *The robust estimation of multiple motions*, 1996)::

    E(θ) = (1/N) Σ_x ρ(I₂(x + u(x)) − I₁(x)) + ρ(α ∇u(x)),     ρ(r) = √(r² + ε²), an ε for each

The images are read where the network says (``gncompile.interpolate``): a pixel is a sample, the differences
are its outputs, and the compiled steps are Gauss-Newton's. Images are blurred, less and less, and each blur
goes on with the last one's network. Errors are measured against the true displacement: of the
``motorcycle`` pair of Middlebury's stereo benchmark, which scikit-image brings, and of a face (in the folder
GNCOMPILE_DATA) that is warped by a known one.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.io import loadmat
from scipy.ndimage import gaussian_filter, map_coordinates
from torch import Tensor, nn

import gncompile

LOSS = {"data": "sqrt((z - y)**2 + 0.0004)", "smooth": "sqrt((z - y)**2 + 0.01)"}


@dataclass
class Pair:
    """``one(x) = two(x + truth(x))`` at the pixels that are ``known``: images ``[H, W, C]`` in [0, 1]."""

    name: str
    one: np.ndarray
    two: np.ndarray
    truth: np.ndarray  # [H, W, 2]: rows, columns
    known: np.ndarray
    axes: tuple[int, ...]  # along which anything moves
    blurs: Sequence[float]
    scale: float  # a large displacement, in pixels
    alpha: float
    frequency: float
    batch: int


def motorcycle() -> Pair:
    """Seen from two places side by side: every pixel of the left image moves to the left."""
    from skimage import data

    left, right, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity) & (disparity > 0)
    truth = np.stack([np.zeros_like(disparity), -disparity], axis=-1)
    blurs = (16, 8, 4, 2, 1, 0)
    return Pair(
        "motorcycle", left / 255, right / 255, truth, known, (1,), blurs, 30.0, 0.3, 3.0, 2048
    )  # fmt: skip


def warped_face(number: int = 0, size: float = 3.0, seed: int = 0) -> Pair:
    """A face, and what a smooth displacement of about ``size`` pixels makes of it."""
    folder = Path(os.environ["GNCOMPILE_DATA"]) / "faces"
    faces = loadmat(str(folder / "olivettifaces.mat"))["faces"]
    face = faces[:, 10 * number].reshape(64, 64, order="F") / 255
    draw = np.random.default_rng(seed)
    truth = gaussian_filter(draw.standard_normal((64, 64, 2)), (10, 10, 0), mode="reflect")
    truth *= size / np.abs(truth).max()
    at = np.moveaxis(np.stack(np.mgrid[:64, :64], axis=-1) + truth, -1, 0)
    one = map_coordinates(face, at, order=3, mode="nearest")
    known = np.ones((64, 64), bool)
    return Pair(
        "face", one[..., None], face[..., None], truth, known, (0, 1), (2, 1, 0), 3.0, 0.03, 1.0, 4096
    )  # fmt: skip


class Flow(nn.Module):
    """From pixels ``[.., 2]`` to displacements ``[.., 2]``, through sines of random frequencies."""

    frequencies: Tensor

    def __init__(self, pair: Pair, features: int = 32, width: int = 64) -> None:
        super().__init__()
        self.half, self.scale, self.axes = max(pair.one.shape[:2]) / 2, pair.scale, pair.axes
        self.register_buffer("frequencies", pair.frequency * torch.randn(2, features))
        self.net = nn.Sequential(
            nn.Linear(2 + 2 * features, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(),
            nn.Linear(width, len(pair.axes)),
        )  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels / self.half - 1
        phases = x @ self.frequencies
        u = self.scale * self.net(torch.cat([x, phases.sin(), phases.cos()], dim=-1))
        return u if len(self.axes) == 2 else torch.cat([0 * u, u], dim=-1)


class Energy(nn.Module):
    """At pixels ``[N, 2]``: differences of the images, and of the flow between neighbouring pixels."""

    one: Tensor
    two: Tensor
    neighbours: Tensor

    def __init__(self, flow: Flow, pair: Pair, blur: float) -> None:
        super().__init__()
        self.flow, self.alpha = flow, pair.alpha
        for name in ("one", "two"):
            image = gaussian_filter(getattr(pair, name), (blur, blur, 0), mode="nearest")
            self.register_buffer(name, torch.from_numpy(image).float().movedim(-1, 0).contiguous())
        self.register_buffer("neighbours", torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        u = self.flow(pixels[:, None] + self.neighbours)
        there = gncompile.interpolate(self.two, pixels + u[:, 0], mode="cubic")
        here = gncompile.interpolate(self.one, pixels, mode="cubic")
        slopes = (u[:, 1:] - u[:, :1])[..., list(self.flow.axes)]
        return {"data": there - here, "smooth": self.alpha * slopes.flatten(1)}


def pixels_of(pair: Pair) -> Tensor:
    """All of them, ``[H W, 2]``."""
    return torch.from_numpy(np.argwhere(np.ones_like(pair.known))).float()


def displacement(flow: Flow, pair: Pair) -> np.ndarray:
    """``[H, W, 2]``."""
    with torch.no_grad():
        u = torch.cat([flow(part) for part in pixels_of(pair).split(1 << 16)])
    return u.reshape(pair.truth.shape).numpy()


def end_point_error(u: np.ndarray, pair: Pair) -> float:
    """The mean distance to the true displacement, in pixels."""
    return float(np.linalg.norm(u - pair.truth, axis=-1)[pair.known].mean())


Report = Callable[[float, float], None]


def solve(
    pair: Pair, method: str, updates: int, report: Report = lambda seconds, error: None, **options: object
) -> np.ndarray:  # fmt: skip
    """The flow after so many ``updates`` with each blur; ``report`` is told of seconds and errors."""
    torch.manual_seed(0)
    flow, pixels, seconds = Flow(pair), pixels_of(pair), 0.0
    for blur in pair.blurs:
        begun = time.perf_counter()
        energy = Energy(flow, pair, blur)
        trainer = gncompile.compile(energy, LOSS, pixels[: pair.batch], method, **options)
        none = {name: torch.zeros_like(z) for name, z in energy(pixels[: pair.batch]).items()}
        for _ in range(updates):
            trainer.step(pixels[torch.randint(len(pixels), (pair.batch,))], none)
        seconds += time.perf_counter() - begun
        error = end_point_error(displacement(flow, pair), pair)
        print(
            f"  {method:>5}, blur {blur:>2}: error {error:.3f} px after {seconds:.1f} s", flush=True
        )
        report(seconds, error)
    return displacement(flow, pair)


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
            found[f"{name}, scale {scale:g}"] = whole * np.isin([0, 1], pair.axes)
    return found


def picture(pair: Pair, flows: dict[str, np.ndarray], curves: dict[str, list], path: Path) -> None:
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
    print(f"{pair.name}: {' × '.join(map(str, pair.truth.shape[:2]))} pixels")
    curves: dict[str, list] = {"Gauss-Newton": [], "Adam": []}

    def noted(name: str) -> Report:
        return lambda seconds, error: curves[name].append((seconds, error))

    ours = solve(pair, "kflr", updates, noted("Gauss-Newton"))
    adam = solve(pair, "adam", first_order, noted("Adam"), learning_rate=3e-3)
    others = by_scikit_image(pair)
    flows = {"Gauss-Newton": ours, "Adam": adam, **others}
    errors = {name: end_point_error(u, pair) for name, u in flows.items()}
    for name, error in errors.items():
        print(f"  {name:<16} {error:.3f} px")
    best = min(others, key=errors.__getitem__)
    picture(
        pair, {"Gauss-Newton": ours, best: others[best]}, curves, folder / f"flow_{pair.name}.png"
    )
    return errors


def main(folder: Path) -> None:
    """Both pairs; Adam gets as many updates as take about as long."""
    compare(warped_face(), 15, 100, folder)
    compare(motorcycle(), 40, 300, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
