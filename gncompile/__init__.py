"""gncompile: compile a feedforward network and a loss into a second-order trainer."""

__version__ = "0.1.0.dev0"
