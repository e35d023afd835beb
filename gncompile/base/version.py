"""The version of the package, for those that may not know the package itself."""

__version__ = "0.1.0.dev0"
