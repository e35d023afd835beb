"""Data sets: by name, or from a user's files."""

from .data_sets import Batches, load
from .data_spec import DataSpec, DataSplit
from .data_split import read_rows
from .table_schema import TableSchema

__all__ = ["Batches", "DataSpec", "DataSplit", "TableSchema", "load", "read_rows"]
