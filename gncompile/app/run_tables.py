"""Rows for a trained model, from a file or from columns in memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..base.untrusted import shown
from ..data.data_files import ARCHIVES
from ..data.table import Table
from ..data.table_schema import TableSchema
from ..data.tables import TABLES, read_table
from ..errors import DataError


def table_of(
    data: str | os.PathLike[str] | Table | Mapping[str, Any], schema: TableSchema
) -> Table:
    """The rows of a file, of columns by name, or of a table that was read before."""
    if isinstance(data, Table):
        return data
    if isinstance(data, Mapping):
        return _of_columns({name: np.asarray(each) for name, each in data.items()}, "the columns")
    path = Path(data)
    if not path.is_file():
        raise DataError(f"no data file {shown(str(path))}", instead="check the path")
    if path.suffix in TABLES:
        return read_table(path, schema.texts)
    if path.suffix in ARCHIVES:
        names = [c.name for c in (*schema.numeric, *schema.categories)]
        wanted = [*names, *schema.targets, *([schema.weights] if schema.weights else [])]
        return _of_columns(ARCHIVES[path.suffix](path, wanted), str(path))
    raise DataError(
        f"{shown(str(path))} is no data file that can be read",
        instead=f"give a file ending in {', '.join((*TABLES, *ARCHIVES))}",
    )


def _of_columns(columns: Mapping[str, Any], where: str) -> Table:
    lengths = {len(each) for each in columns.values()}
    if len(lengths) != 1:
        raise DataError(
            f"columns of {', '.join(map(str, sorted(lengths))) or 'no'} rows",
            where=where,
            instead="give columns of one length",
        )
    return Table(columns, where, np.arange(lengths.pop()), "index")
