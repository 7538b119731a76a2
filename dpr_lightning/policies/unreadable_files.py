"""Files of weights that cannot be read: what readers raise, and how it is told."""

import pickle

from safetensors import SafetensorError

from dpr_lightning.errors import first_line

UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError)
"""What readers of weights raise at files that are damaged or of another kind."""


def complaint(error: Exception) -> str:
    """What a reader complains of. That of pickled files recommends to run them."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is pickled with more than tensors, and loading that would run what it says."
    return f"{first_line(error).rstrip('. ')}."
