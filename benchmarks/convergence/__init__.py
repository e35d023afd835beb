"""Convergence: problems × optimisers × seeds under equal budgets; see ../README.md."""
