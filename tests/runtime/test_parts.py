"""What of a batch and of its shares is one process's."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gncompile.runtime.parts import ALL, Part


@given(
    st.integers(1, 40), st.integers(1, 5), st.integers(0, 1000), st.data()
)  # samples, processes, seed
def test_the_parts_of_all_processes_are_the_whole(
    samples: int, size: int, seed: int, data: st.DataObject
) -> None:
    whole = {"N": samples, **{rows: data.draw(st.integers(1, samples)) for rows in "FQL"}}
    owner = torch.randint(size, (samples,), generator=torch.Generator().manual_seed(seed))
    parts = [Part(whole, (owner == rank).nonzero().flatten()) for rank in range(size)]
    for rows, count in whole.items():
        assert sum(part.weight(rows) for part in parts) == pytest.approx(1.0)
        first = samples - count if rows == "F" else 0
        places = [part.positions(rows) for part in parts if part.weight(rows)]
        assert sorted(torch.cat(places).tolist()) == list(range(count))
        for part in parts:
            inside = sum(first <= place < first + count for place in part.places.tolist())
            assert part.dims[rows] == max(1, inside)
    assert sum(part.weight("total") for part in parts) == len(owner.unique())


def test_one_process_has_all() -> None:
    assert ALL.weight("F") == ALL.weight("total") == 1.0
    assert ALL.positions("N") is None
