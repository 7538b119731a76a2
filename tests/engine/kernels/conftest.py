"""The kernels as compiled for this CPU, and for CPUs with shorter vectors."""

import ctypes
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from dpr_lightning.engine.kernels import calling, compiling

OTHERS = {"AVX2": "x86-64-v3", "SSE": "x86-64-v2"} if platform.machine() in ("x86_64", "AMD64") else {}


@cache
def _compiled_for(architecture: str) -> ctypes.CDLL:
    return compiling.build(compiling.compilers()[0], Path(mkdtemp(dir=compiling.folder())), architecture)


@pytest.fixture(
    params=["this CPU", *(pytest.param(name, marks=pytest.mark.slow if name == "AVX2" else ()) for name in OTHERS)]
)
def vectors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run each test once for every vector width."""
    if compiling.load() is None:
        pytest.skip("there is no C++ compiler here")
    if request.param in OTHERS:
        library = _compiled_for(OTHERS[request.param])
        monkeypatch.setattr(compiling, "load", lambda: library)
    for cached in (calling.lanes, calling.function):
        cached.cache_clear()
    yield
    for cached in (calling.lanes, calling.function):
        cached.cache_clear()
