"""Passes: pure functions from a :class:`~gncompile.model_graph.ModelGraph` to another one."""
