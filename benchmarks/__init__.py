"""How long a step takes, against autograd and BackPACK; see README.md."""
