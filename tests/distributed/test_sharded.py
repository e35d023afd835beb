"""Directions by owner, and factors that one process keeps: the steps are those of one process all the same."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from joint_trainings import STEPS, TRAININGS, Joint, Outcome, Training, _outcome, chain, fixed
from processes import run_on
