"""Data sets: by name, or from a user's files."""

from .data_sets import Batches, load
from .data_spec import DataSpec, DataSplit

__all__ = ["Batches", "DataSpec", "DataSplit", "load"]
