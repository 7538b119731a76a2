"""Errors that are the user's to mend: they say what was found, the likely cause and the remedy."""


class InputError(ValueError):
    """Wrong input: a file, a row, an option. The command line prints the message alone and exits with 2."""
