"""What holds tensors: memory, the executables of both backends, linear algebra, checkpoints."""
