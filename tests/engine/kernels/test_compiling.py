"""Compiling and caching of the library, and what happens where that fails."""

import ctypes
import logging
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning.engine import kernels
from dpr_lightning.engine.kernels import compiling
from dpr_lightning.rollouts import SamplingOptions, sample
from tests.tiny import decoder

needs_compiler = pytest.mark.skipif(not compiling.compilers(), reason="there is no C++ compiler here")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty, for libraries that are compiled fast instead of being fast."""
    quick = tuple("-O0" if option == "-O3" else option for option in compiling._COMPILE)
    monkeypatch.setattr(compiling, "_COMPILE", quick)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(compiling.SWITCH, raising=False)
    return tmp_path / "dpr_lightning"


def fresh() -> ctypes.CDLL | None:
    """Load as a new process would."""
    return compiling.load.__wrapped__()


def script(folder: Path, text: str) -> str:
    file = folder / "compiler"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


@needs_compiler
def test_a_machine_with_a_compiler_has_kernels() -> None:
    assert kernels.has_kernels(torch.float32, torch.device("cpu"))
    assert kernels.has_kernels(torch.bfloat16, torch.device("cpu"))
    assert not kernels.has_kernels(torch.float64, torch.device("cpu"))
    assert not kernels.has_kernels(torch.float32, torch.device("cuda"))


@needs_compiler
def test_a_library_is_made_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fresh() is not None
    (library,) = cache.iterdir()  # nothing is left beside it
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    monkeypatch.setattr(compiling, "build", lambda *_: pytest.fail("it was there"))
    assert fresh() is not None
    monkeypatch.setattr(compiling, "_processor", lambda: "another")
    assert compiling._identity(compiling.compilers()[0]) not in library.name


def none_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has the compiler of $CXX alone."""
    monkeypatch.setattr(compiling, "COMPILERS", ())


def test_without_a_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    none_of_its_own(monkeypatch)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with caplog.at_level(logging.WARNING):
        assert fresh() is None
    assert "No C++ compiler was found" in caplog.text
    assert not cache.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[ "$1" = --version ] && exit 0\necho cannot compile this >&2\nexit 1', "cannot compile this"),
        ("echo no licence >&2; exit 3", "no licence"),
        ('[ "$1" = --version ] || touch "$(echo "$@" | sed "s/.*-o //")"', "file too short"),
    ],
    ids=["fails to compile", "fails at once", "makes nothing that loads"],
)
def test_a_compiler_that_fails(
    text: str, says: str, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    none_of_its_own(monkeypatch)
    monkeypatch.setenv("CXX", script(tmp_path, text))
    with caplog.at_level(logging.WARNING):
        assert fresh() is None
    assert says in caplog.text
    assert "DPR_KERNELS=0" in caplog.text
    assert list(cache.iterdir()) == []


@needs_compiler
def test_where_the_compiler_that_is_asked_for_fails_another_serves(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    other = compiling.compilers()[0][0]
    monkeypatch.setenv("CXX", script(tmp_path, "exit 1"))
    with caplog.at_level(logging.WARNING):
        assert fresh() is not None
    assert not caplog.text
    monkeypatch.setenv("CXX", f'"{other}')
    assert compiling.compilers()[0] == [other]
    monkeypatch.setenv("CXX", f"env {other}")  # a command with arguments, as `ccache g++` is
    assert compiling.compilers()[0][1:] == [other]
    assert fresh() is not None
    assert len(list(cache.iterdir())) == 1  # the one that was there


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("length", [4, 60_000])
def test_a_damaged_library_is_made_again(cache: Path, length: int) -> None:
    """Loading a truncated library would end the process."""
    assert fresh() is not None
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[:length])
    library = fresh()
    assert library is not None
    assert library.lanes() in (4, 8, 16)
    assert [other.stat().st_size for other in cache.iterdir()] == [len(whole)]


@pytest.mark.parametrize("what", ["a file", "others write", "no home"])
def test_where_nothing_can_be_kept(what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    index = tmp_path / "file"
    if what == "a file":
        index.write_text("")
    elif what == "others write":
        (index / "dpr_lightning").mkdir(parents=True)
        (index / "dpr_lightning").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(index))
    if what == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME")

        def homeless(_: Path) -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "expanduser", homeless)
    result = compiling.folder()
    assert result.is_dir()
    assert index not in result.parents
    shutil.rmtree(result)


def test_they_can_be_switched_off(
    cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(compiling.SWITCH, "0")
    assert fresh() is None
    assert not cache.exists()
    assert not caplog.text  # no warning: it was requested


@needs_compiler
def test_they_share_the_threads_of_pytorch() -> None:
    """One OpenMP, or two pools of threads would fight for the cores."""
    program = (
        "import sys, types, torch, dpr_lightning\n"
        # The package of the kernels, without what it imports besides: that takes seconds.
        "sys.modules['dpr_lightning.engine'] = engine = types.ModuleType('dpr_lightning.engine')\n"
        "engine.__path__ = [dpr_lightning.__path__[0] + '/engine']\n"
        "from dpr_lightning.engine import kernels\n"
        "torch.set_num_threads(2); rows = torch.randn(64, 512)\n"
        "torch.mm(torch.randn(512, 512), torch.randn(512, 512))\n"
        "kernels.PackedWeight(torch.randn(512, 512), None)(rows)\n"
        "print(open('/proc/self/maps').read())"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    runtimes = {line.split()[-1] for line in result.stdout.splitlines() if "libgomp" in line or "libiomp" in line}
    assert "dpr_lightning/kernels-" in result.stdout
    assert len(runtimes) == 1, runtimes


def test_who_counts_operations_sees_those_of_pytorch() -> None:
    logits = torch.randn(3, 50)
    assert kernels.serves(logits) == (compiling.load() is not None)
    with FlopCounterMode(display=False):
        assert not kernels.serves(logits)
    seen: list[bool] = []
    torch.jit.trace(lambda value: (seen.append(kernels.serves(value)), value + 1)[1], logits, check_trace=False)
    assert seen == [False]
    assert not kernels.serves(logits, logits.bfloat16())
    assert not kernels.serves(logits.double())
    assert not kernels.serves(torch.empty(3, device="meta"))
    assert not kernels.serves(logits, torch.empty(3, device="meta"))
    assert not kernels.serves(TwoTensor(logits, logits))


@needs_compiler
def test_a_sample_is_the_same_to_the_bit_in_another_batch() -> None:
    """After the prefill, which is PyTorch's; so prompts have one length and are read one by one."""
    torch.manual_seed(0)
    model = decoder("qwen3", head_dim=32).eval()
    options = SamplingOptions(max_new_tokens=12)
    together = sample(model, [[3, 4, 5]], options, stop_tokens=[], pad_token=0, num_samples=9, seed=1)
    alone = sample(model, [[3, 4, 5]], options, stop_tokens=[], pad_token=0, num_samples=2, seed=1)
    assert torch.equal(together.tokens[:2], alone.tokens)
    assert torch.equal(together.logprob[:2], alone.logprob)
