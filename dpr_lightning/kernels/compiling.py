"""C++ of this package, compiled for the CPU it runs on: once, at the first use, and kept for later."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch  # before any library: its OpenMP, whose threads are those of PyTorch, is the one to be found

log = logging.getLogger(__name__)

SWITCH = "DPR_KERNELS"
"""Environment variable: 0 leaves everything to PyTorch."""
COMPILERS = ("g++", "c++")
_COMPILE = ("-std=gnu++17", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=fast")
_SECONDS = 300
_HERE = Path(__file__).parent


@cache
def library() -> ctypes.CDLL | None:
    """All of this folder's C++, compiled; None where there is no compiler or it fails, which is logged once.

    It lies in ``$XDG_CACHE_HOME/dpr_lightning`` (``~/.cache/dpr_lightning``) under a name that changes with the source,
    the compiler and the CPU.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    found = compiler()
    if found is None:
        log.warning(
            "No C++ compiler was found ($CXX, %s), so that PyTorch's own operations do all the work on this CPU, more "
            "slowly: writing answers takes about twice the time. Install one, for example Debian's package g++.",
            ", ".join(COMPILERS),
        )
        return None
    try:
        file = folder() / f"kernels-{_identity(found)}.so"
        if not _loads(file):  # not there yet, or damaged
            build(found, file)
        return ctypes.CDLL(str(file))
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        log.warning(
            "The kernels of this package could not be compiled with %s, so that PyTorch's own operations do all the "
            "work on this CPU, more slowly: %s\n%s=0 leaves them untried.",
            found,
            said.strip()[-2000:],
            SWITCH,
        )
        return None


def _loads(file: Path) -> bool:
    try:
        ctypes.CDLL(str(file))
    except OSError:
        return False
    return True


def compiler() -> str | None:
    """The C++ compiler: what $CXX names, else the first of :data:`COMPILERS` that there is."""
    asked = os.environ.get("CXX")
    return next((found for name in ([asked] if asked else COMPILERS) if (found := shutil.which(name))), None)


def folder() -> Path:
    """Where libraries are kept, writable by this user alone; a folder for this process where there is no such place."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpr_lightning"
    try:
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        if kept.stat().st_uid == os.getuid() and os.access(kept, os.W_OK):
            return kept
    except (OSError, RuntimeError):
        pass
    return Path(tempfile.mkdtemp(prefix="dpr_lightning-"))


def _identity(compiler: str) -> str:
    """Changes with all that a library depends on; homes are shared by machines that differ."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=True)
    texts = [file.read_text() for file in sorted(_HERE.glob("*.h")) + _sources()]
    whole = "\n".join([*texts, version.stdout, *_COMPILE, _processor(), torch.__version__])
    return hashlib.sha256(whole.encode()).hexdigest()[:16]


def _sources() -> list[Path]:
    return sorted(_HERE.glob("*.cpp"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return " ".join(os.uname())
    return "\n".join(sorted({line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features")}))


def build(compiler: str, file: Path, architecture: str = "native") -> None:
    """Write ``file`` in one move, whoever else does the same.

    Raises:
        subprocess.CalledProcessError: the compiler fails; ``stderr`` says why.
    """
    with tempfile.TemporaryDirectory(dir=file.parent) as within:
        made = {source: str(Path(within) / f"{source.stem}.o") for source in _sources()}
        whole = Path(within) / "whole.so"
        options = (*_COMPILE, f"-march={architecture}")
        commands = [[compiler, *options, "-c", str(source), "-o", name] for source, name in made.items()]
        # Linked without OpenMP: the one that PyTorch has loaded is to serve.
        for command in (*commands, [compiler, "-shared", *made.values(), "-o", str(whole)]):
            subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
        os.replace(whole, file)
