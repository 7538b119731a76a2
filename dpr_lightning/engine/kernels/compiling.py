"""C++ of this package, compiled for the CPU it runs on: once, at the first use, and kept for later."""

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

import torch  # before any library: its OpenMP, whose threads are those of PyTorch, is the one to be found

log = logging.getLogger(__name__)

SWITCH = "DPR_KERNELS"
"""Environment variable: 0 leaves everything to PyTorch."""
COMPILERS = ("g++", "c++")
_COMPILE = ("-std=gnu++17", "-O3", "-fPIC", "-fopenmp", "-ffp-contract=fast")
_SECONDS = 300
_HERE = Path(__file__).parent


@cache
def load() -> ctypes.CDLL | None:
    """All of this folder's C++, compiled; None where there is no compiler or it fails, which is logged once.

    It lies in ``$XDG_CACHE_HOME/dpr_lightning`` (``~/.cache/dpr_lightning``) under a name that changes with the source,
    the compiler, the CPU, and with what is in it, so that a damaged one is known and made again.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    found = compilers()
    if not found:
        log.warning(
            "No C++ compiler was found ($CXX, %s), so that PyTorch's own operations do all the work on this CPU, more "
            "slowly (docs/performance.md). Install one, for example Debian's package g++.",
            ", ".join(COMPILERS),
        )
        return None
    said = []
    kept = folder()
    for make in (_kept, build):
        for compiler in found:
            try:
                made = make(compiler, kept)
            except (OSError, subprocess.SubprocessError) as error:
                said.append(f"{' '.join(compiler)}: {str(getattr(error, 'stderr', None) or error).strip()[-2000:]}")
            else:
                if made is not None:
                    log.info("Kernels for decoding: %s.", made._name)
                    return made
    log.warning(
        "The kernels of this package could not be compiled and loaded, so that PyTorch's own operations do all the "
        "work on this CPU, more slowly.\n%s\n%s=0 leaves them untried.",
        "\n".join(said),
        SWITCH,
    )
    return None


def compilers() -> list[list[str]]:
    """Commands of the C++ compilers there are: what $CXX names, then those of :data:`COMPILERS`."""
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError:  # a quotation mark too few
        named = []
    asked = [named, *([name] for name in COMPILERS)]
    there = [[found, *command[1:]] for command in asked if command and (found := shutil.which(command[0]))]
    return [command for place, command in enumerate(there) if command not in there[:place]]


def folder() -> Path:
    """Where libraries are kept, writable by this user alone; a folder for this process where there is no such place."""
    try:
        kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dpr_lightning"
        kept.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = kept.stat()
        if found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(kept, os.W_OK):
            return kept
    except (OSError, RuntimeError):  # there is no home
        pass
    made = Path(tempfile.mkdtemp(prefix="dpr_lightning-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def build(compiler: Sequence[str], kept: Path, architecture: str = "native") -> ctypes.CDLL:
    """Compile, load, and keep the library in a folder, in one move, whoever else does the same.

    Raises:
        subprocess.CalledProcessError: the compiler fails; ``stderr`` says why.
        OSError: what it made cannot be loaded, or there is no room for it.
    """
    with tempfile.TemporaryDirectory(dir=kept) as within:
        made = {source: str(Path(within) / f"{source.stem}.o") for source in _sources()}
        whole = Path(within) / "whole.so"
        options = (*_COMPILE, f"-march={architecture}")
        # Linked without OpenMP: the one that PyTorch has loaded is to serve.
        for arguments in (
            *([*options, "-c", str(source), "-o", name] for source, name in made.items()),
            ["-shared", *made.values(), "-o", str(whole)],
        ):
            _run([*compiler, *arguments])
        loaded = ctypes.CDLL(str(whole))
        content = whole.read_bytes()
        with whole.open("rb") as handle:
            os.fsync(handle.fileno())
        os.replace(whole, kept / f"kernels-{_identity(compiler, architecture)}-{_hash(content)}.so")
    return loaded


def _kept(compiler: Sequence[str], kept: Path) -> ctypes.CDLL | None:
    """What :func:`build` left, unless it is damaged."""
    for file in kept.glob(f"kernels-{_identity(compiler)}-*.so"):
        if file.stem.endswith(_hash(file.read_bytes())):
            return ctypes.CDLL(str(file))
        file.unlink(missing_ok=True)
    return None


def _identity(compiler: Sequence[str], architecture: str = "native") -> str:
    """Changes with all that a library depends on; homes are shared by machines that differ."""
    texts = [file.read_bytes() for file in sorted(_HERE.glob("*.h")) + _sources()]
    others = [_run([*compiler, "--version"]), *_COMPILE, architecture, _processor(), torch.__version__]
    return _hash(b"\n".join([*texts, *(other.encode() for other in others)]))


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=_SECONDS, check=True
    )
    return done.stdout


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _sources() -> list[Path]:
    return sorted(_HERE.glob("*.cpp"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return " ".join(os.uname())
    return "\n".join(sorted({line for line in lines if line.split("\t")[0] in ("model name", "flags", "Features")}))
