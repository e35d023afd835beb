"""BackPACK lives in the benchmark environment only (`make bench-env`); elsewhere these tests do not exist."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("backpack") else ["test_backpack.py"]
