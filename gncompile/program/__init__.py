"""The second intermediate representation: a training step as an SSA program, its costs and passes."""
