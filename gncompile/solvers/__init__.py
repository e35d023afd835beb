"""What turns the gradient ∇ into the direction Δ, one solver a file; see :mod:`.solver`."""
