"""Import the libraries of a command once its options are parsed, and set how they behave in a process of ``dpr``."""

import gc
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from types import ModuleType

_LIBRARIES = (
    r"(dpr_lightning|torch|lightning|transformers|peft|accelerate|datasets|huggingface_hub|safetensors"
    r"|torchmetrics|torchao|deepspeed|vllm|wandb|jsonargparse|pydantic|multiprocess|dill)(\.|$)"
)
"""Modules whose warnings about a later version of a library no user can act on."""


def settle_libraries() -> None:
    """Import what every command but the listing ones needs; a second time in a process changes nothing.

    Sets how long waiting threads spin and how freed memory is reused, and silences output of libraries.
    """
    # Threads that spin while they wait, OpenMP's default, cost several times the step where another process wants the
    # core; those that sleep at once make decoding take half as long again. These spin for some 50 µs (measured, see
    # docs/results.md). Has to be set before torch is imported.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    with _no_collections():
        import torch
        from transformers.utils import logging as transformers_logging

        _import_torchmetrics()
        import_module("dpr_lightning.lightning_cli.dpr_cli")  # what every command trains or reads with
        from dpr_lightning.engine.host_memory import retain_freed_memory

    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        retain_freed_memory()
    if not sys.warnoptions:  # `python -W` or PYTHONWARNINGS show them
        for category in (FutureWarning, DeprecationWarning, PendingDeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=_LIBRARIES)
    transformers_logging.disable_progress_bar()


def _import_torchmetrics() -> None:
    """Import it, as Lightning does later, without ``scipy.signal``, which takes half a second and serves nothing here.

    torchmetrics imports that module to add one function to it, for a metric of speech. It gets an empty module here;
    an import after this one gets the real one.
    """
    name = "scipy.signal"
    if name in sys.modules or "torchmetrics" in sys.modules:
        return
    sys.modules[name] = empty = ModuleType(name)
    vars(empty)["hamming"] = None  # found there, nothing is added
    with suppress(ImportError):  # of a version that uses more of it; Lightning's own import meets the real one
        import_module("torchmetrics")
    del sys.modules[name]


@contextmanager
def _no_collections() -> Iterator[None]:
    """Collect no garbage within, nor ever look at the objects that were created within.

    Modules are never garbage, and the collector would look at their 800,000 objects again and again: a sixth of the
    time that a command takes to start. Where PyTorch is imported already, this changes nothing.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
