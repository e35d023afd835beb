"""Peers live in the benchmark environment only (`make bench-env`); elsewhere these tests do not exist."""

from importlib.util import find_spec

PEERS = {"backpack": "test_backpack.py", "curvlinops": "test_curvlinops.py"}
collect_ignore = [test for peer, test in PEERS.items() if not find_spec(peer)]
