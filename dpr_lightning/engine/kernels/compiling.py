"""Compiles this package's C++ for the CPU it runs on, at the first use, and caches the library."""

import atexit
import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch  # before the library, which then shares PyTorch's OpenMP and its threads

log = logging.getLogger(__name__)

SWITCH = "DPR_KERNELS"
"""Environment variable: 0 turns kernels off."""
COMPILERS = ("g++", "c++")
_COMPILE = ("-std=gnu++17", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=fast")
_SECONDS = 300
_SOURCE = Path(__file__).parent / "decoding.cpp"


@cache
def load() -> ctypes.CDLL | None:
    """This folder's C++, compiled; None where there is no compiler or it fails, which is logged once.

    The library is cached in ``$XDG_CACHE_HOME/dpr_lightning`` (``~/.cache/dpr_lightning``) under a name with hashes of
    the source, the compiler, the CPU and its content, so that a damaged file is recognised and compiled again.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    commands = compilers()
    if not commands:
        log.warning(
            "No C++ compiler was found ($CXX, %s), so that decoding on this CPU uses PyTorch's operations, which are "
            "slower (docs/performance.md). Install one, for example Debian's package g++.",
            ", ".join(COMPILERS),
        )
        return None
    failures = []
    cache_folder = folder()
    for make in (_cached, build):
        for compiler in commands:
            try:
                library = make(compiler, cache_folder)
            except (OSError, subprocess.SubprocessError) as error:
                output = error.stderr if isinstance(error, subprocess.CalledProcessError) else None
                failures.append(f"{' '.join(compiler)}: {str(output or error).strip()[-2000:]}")
            else:
                if library is not None:
                    log.info("Kernels for decoding: %s.", library._name)
                    return library
    log.warning(
        "The kernels of this package could not be compiled and loaded, so that decoding on this CPU uses PyTorch's "
        "operations, which are slower.\n%s\n%s=0 turns kernels off.",
        "\n".join(failures),
        SWITCH,
    )
    return None


def compilers() -> list[list[str]]:
    """Commands of the installed C++ compilers: that of $CXX, then those of :data:`COMPILERS`."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError:  # an unclosed quotation mark
        named = []
    commands = [named, *([name] for name in COMPILERS)]
    installed = [[path, *command[1:]] for command in commands if command and (path := shutil.which(command[0]))]
    return [command for index, command in enumerate(installed) if command not in installed[:index]]


def folder() -> Path:
    """The cache folder, if this user alone can write to it; otherwise a temporary folder of this process."""
    try:
        cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpr_lightning"
        cache_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = cache_folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022 and os.access(cache_folder, os.W_OK):
            return cache_folder
    except (OSError, RuntimeError):  # no home folder
        pass
    temporary = Path(tempfile.mkdtemp(prefix="dpr_lightning-"))
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    return temporary


def build(compiler: Sequence[str], cache_folder: Path, architecture: str = "native") -> ctypes.CDLL:
    """Compile and load the library, and move it to ``cache_folder`` in one step, safe beside other processes.

    Raises:
        subprocess.CalledProcessError: the compiler fails; ``stderr`` says why.
        OSError: the result cannot be loaded, or the disk is full.
    """
    with tempfile.TemporaryDirectory(dir=cache_folder) as within:
        compiled, whole = Path(within) / "decoding.o", Path(within) / "whole.so"
        _run([*compiler, *_COMPILE, f"-march={architecture}", "-c", str(_SOURCE), "-o", str(compiled)])
        # Linked without OpenMP: symbols resolve to the one that PyTorch has loaded.
        _run([*compiler, "-shared", str(compiled), "-o", str(whole)])
        loaded = ctypes.CDLL(str(whole))
        content = whole.read_bytes()
        with whole.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(whole, cache_folder / f"kernels-{_identity(compiler, architecture)}-{_hash(content)}.so")
    return loaded


def _cached(compiler: Sequence[str], cache_folder: Path) -> ctypes.CDLL | None:
    """The library that :func:`build` cached; None where there is none or it is damaged."""
    for file in cache_folder.glob(f"kernels-{_identity(compiler)}-*.so"):
        if file.stem.endswith(_hash(file.read_bytes())):
            return ctypes.CDLL(str(file))
        file.unlink(missing_ok=True)
    return None


def _identity(compiler: Sequence[str], architecture: str = "native") -> str:
    """Hash of all that a library depends on; machines that differ may share a home folder."""
    texts = [file.read_bytes() for file in (*sorted(_SOURCE.parent.glob("*.h")), _SOURCE)]
    versions = [_run([*compiler, "--version"]), *_COMPILE, architecture, _processor(), torch.__version__]
    return _hash(b"\n".join([*texts, *(other.encode() for other in versions)]))


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS, check=True
    )
    return done.stdout


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return " ".join(os.uname())
    return "\n".join(sorted({line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features")}))
