"""A training step on a CUDA device, timed: ``python -m benchmarks.gpu``; see benchmarks/README.md."""
