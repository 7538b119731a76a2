"""The command line, the top layer of the package."""
