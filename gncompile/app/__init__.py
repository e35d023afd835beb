"""What users call: ``compile``, the command line, run folders, and the comparison of optimisers."""
