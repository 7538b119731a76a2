"""Exceptions of files of weights that cannot be read, and their messages."""

import pickle

from safetensors import SafetensorError

from dpr_lightning.errors import first_line

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError)
"""Exceptions of readers of weights for files that are damaged or of another kind."""


def complaint(error: Exception) -> str:
    """The reader's message, without torch's advice to load pickled files by ``weights_only=False``, which runs them."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is pickled with more than tensors, and loading that would run what it says."
    return f"{first_line(error).rstrip('. ')}."
