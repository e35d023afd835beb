"""What holds and moves tensors: memory, executables, linear algebra, and the interpreter of programs."""
