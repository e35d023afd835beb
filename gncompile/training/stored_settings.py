"""What a checkpoint says of how its trainer was compiled, checked before anything is made of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..base.settings import AUTO, CURVATURE_METHODS
from ..base.typed import check_of
from ..derivation.damping import TRIED
from ..errors import CheckpointError, GncompileError
from ..losses.vocabulary import Loss
from .stored_loss import loss_from_data

VARIANTS = check_of(Mapping[str, Mapping[str, int | str | None]])


def settings_from_data(about: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The keyword arguments of ``compile`` that a checkpoint holds.

    Raises :class:`CheckpointError`, with what ``compile`` would say, for an option that it does not take.
    """
    from ..base.settings import Settings
    from .arguments import check_arguments

    # What was tuned decides the rounding: a resumed training computes as the stored one did.
    given = {
        "backend": about.get("backend"),
        "precision": about.get("precision", "highest"),
        "tune": about.get("variants", "off"),
    }
    try:
        options = dict(about["settings"])
        _respell(options)
        check_arguments(dtype=None, **given)
        settings = Settings.of(**options)
    except (GncompileError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise _wrong("a setting", path, error) from error
    if given["tune"] != "off" and not VARIANTS(given["tune"]):
        raise _wrong("variants", path, "they are no table of numbers and words")
    stored = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    return {**stored, **given}


def _respell(options: dict[str, Any]) -> None:
    """The options of a checkpoint written before as they are called now."""
    if options.pop("exact_damping", False) is True:
        options["inverse"] = "eigen"
    if options.get("solver") == "exact" and options.get("method") in CURVATURE_METHODS:
        options["method"] = AUTO  # which it did not look at
    if options.get("factor_damping_rate") == TRIED:
        del options["factor_damping_rate"]  # no option any more, but what it always was


def stored_loss(about: Mapping[str, Any], path: Path) -> Loss:
    """The loss of a checkpoint; :class:`CheckpointError` if it is none."""
    try:
        return loss_from_data(about["loss"])
    except (
        GncompileError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        OverflowError,
    ) as error:
        raise _wrong("a loss", path, error) from error


def _wrong(what: str, path: Path, why: object) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint holds {what} that cannot be used: {why}",
        where=str(path),
        instead="use an older checkpoint, or start again",
    )
