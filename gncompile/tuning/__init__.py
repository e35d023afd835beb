"""Tuning: choose by measurement how the operations of a compiled step are computed, and remember it."""
