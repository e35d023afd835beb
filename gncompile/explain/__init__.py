"""A compiled program read back to its user: formulas, costs, and the pages made of them."""
