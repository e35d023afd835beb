"""The kernel template of CONTRIBUTING.md, in the interpreter, on odd shapes in buffers of NaN."""

import re
import textwrap
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from matrices import TOLERANCE, matrix

PAGE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    section = PAGE.read_text().partition("## A kernel template")[2]
    code = re.search(r"-->\n\n((?:(?: {4}.*)?\n)+)", section)
    assert code is not None
    path = tmp_path_factory.mktemp("recipe") / "row_norms.py"
    path.write_text(textwrap.dedent(code[1]))
    spec = spec_from_file_location("row_norms", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (33, 65), (70, 7)])
def test_it_computes_what_its_reference_does(recipe, rows, columns):
    x = matrix(rows, columns)
    got, wanted = torch.full((rows,), torch.nan), torch.empty(rows)
    recipe.row_norms(x, got)
    recipe.row_norms_reference(x, wanted)
    torch.testing.assert_close(got, wanted, rtol=TOLERANCE[torch.float32], atol=0)
    assert recipe.cost(rows, columns)[1] == 4 * (rows * columns + rows)
