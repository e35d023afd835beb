"""The mathematics of a step as instructions: derivatives, curvature, damping, and what is due when."""
