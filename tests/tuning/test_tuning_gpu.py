"""Tuning for GPUs as far as nothing runs there: predicted costs, and what the command refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_model import write_model

from gncompile.app.cli import main
from gncompile.errors import GncompileError
from gncompile.tuning.device import this_device, versions

pytest.importorskip("triton")
from gncompile.triton_kernels.elementwise import ElementwiseSettings, space
from gncompile.triton_kernels.gemm import space as gemm_space
from gncompile.triton_kernels.settings import MatrixSettings, Shape
from gncompile.tuning.gpu_work import (
    FIGURES,
    MatrixWork,
    TileWork,
    figures_of,
    nearest_figures,
)

H100 = FIGURES[90]
TILE = MatrixSettings(64, 64, 32)


def product(*shapes: Shape) -> MatrixWork:
    return MatrixWork((shapes,), gemm_space, torch.float32, "high")


# --- the cost model -----------------------------------------------------------------------------------


def test_a_second_wave_of_tiles_takes_up_to_twice_the_time() -> None:
    """132 multiprocessors: 12 × 11 tiles are one wave; 12 × 12 are two, which hide some latency."""
    one, two = (product(Shape(64 * 12, 64 * n, 4096)).seconds(TILE, H100) for n in (11, 12))
    assert 1.5 < two / one <= 2


def test_few_tiles_of_long_sums_are_predicted_to_gain_from_a_split() -> None:
    few, many = product(Shape(64, 64, 16384)), product(Shape(8192, 8192, 256))
    halves = replace(TILE, split=32)
    assert few.seconds(halves, H100) < few.seconds(TILE, H100) / 4
    assert many.seconds(halves, H100) > many.seconds(TILE, H100)


def test_large_tiles_move_less() -> None:
    work = product(Shape(8192, 8192, 8192))
    small = MatrixSettings(16, 16, 32)
    assert work.seconds(TILE, H100) < work.seconds(small, H100)


def test_no_prediction_is_below_what_the_data_sheet_allows() -> None:
    shape = Shape(2048, 1024, 4096)
    work = product(shape)
    floor = 2 * shape.rows * shape.columns * shape.inner / H100.rate(torch.float32, "high")
    assert min(work.seconds(each, H100) for each in work.space()) >= floor  # type: ignore[arg-type]


def test_elementwise_work_costs_at_least_its_traffic() -> None:
    work = TileWork(((1000, 785),), 3, torch.float32, ElementwiseSettings(8, 256), space)
    floor = 1000 * 785 * 3 * 4 / H100.bandwidth
    settings = work.space()
    assert len(settings) > 4
    assert min(work.seconds(each, H100) for each in settings) > floor


def test_precision_decides_the_rate() -> None:
    rates = [H100.rate(torch.float32, p) for p in ("highest", "high", "medium")]  # type: ignore[arg-type]
    assert rates == [67e12, 165e12, 495e12]
    assert H100.rate(torch.float64, "high") == 34e12


def test_figures_are_those_of_the_newest_known_device() -> None:
    assert nearest_figures(89) is FIGURES[80]
    assert nearest_figures(120) is FIGURES[100]
    assert nearest_figures(70) is FIGURES[80]
    with pytest.raises(GncompileError, match="unknown target 'sm_70'"):
        figures_of("sm_70")


@pytest.fixture
def small_model(tmp_path: Path) -> Path:
    return write_model(tmp_path)


# --- devices and the command --------------------------------------------------------------------------


def test_kinds_of_devices() -> None:
    assert this_device("interpreter").slug.startswith("interpreter-")
    assert this_device("interpreter").name == this_device().name
    with pytest.raises(GncompileError, match="unknown kind of device 'gpu'"):
        this_device("gpu")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024",
         "550.54.15"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.10  Release Build",
         "570.86.10"),
        ("something else", "unknown"),
    ],
)  # fmt: skip
def test_the_drivers_version_is_part_of_a_gpus_settings(
    text: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **options: text)
    assert versions("cuda")["driver"] == version
    assert versions("cpu")["driver"] != version


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_there_are_no_settings_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "--explain", "gemm", "--device", "cuda"]) == 1
    assert "there is no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--dry-run", "--list"], "--dry-run needs a model file"),
        (["FILE", "--target", "sm_90"], "--target and --kernel are for --dry-run"),
        (["FILE", "--list"], "give one of FILE"),
    ],
)
def test_options_that_do_not_go_together(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["tune", *arguments])
    assert text in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_dry_run_needs_a_target(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(small_model), "--dry-run"]) == 1
    assert "there is no CUDA device to compile for" in capsys.readouterr().err


def test_a_dry_run_of_no_launch(small_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dry-run", "--target", "sm_90", "--kernel", "gem"]
    assert main(["tune", str(small_model), *arguments]) == 1
    assert "no launch is called 'gem'" in capsys.readouterr().err


def test_a_dry_run_without_triton(small_model: Path) -> None:
    script = (
        "import sys; sys.modules['triton'] = None; from gncompile.app.cli import main; "
        f"sys.exit(main(['tune', {str(small_model)!r}, '--dry-run', '--target', 'sm_90']))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1
    assert "need Triton, which is not installed" in ran.stderr
