"""A program written as source: torch statements, or Triton kernels and the launches around them."""
