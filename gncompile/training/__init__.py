"""The trainer on the host: steps, fits, statistics and checkpoints."""
