"""What a user installs holds what the repository holds: callbacks and configs are where their dotted names say."""

import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = {"dpr_lightning": "dpr_lightning", "dpr_lightning.callbacks": "callbacks", "dpr_lightning.configs": "configs"}

# --ignore-installed: the dependencies' folder may know an editable install of this project; it is to be left alone.
PIP_OPTIONS = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--quiet"]

# Run by the clean environment's own Python, away from the repository.
LOOK_AROUND = """
import importlib.resources, importlib.util, sys
from pathlib import Path
import dpr_lightning, dpr_lightning.functional
for name in ("dpr_lightning", "dpr_lightning.functional", "dpr_lightning.callbacks"):
    path = importlib.util.find_spec(name).origin
    assert Path(path).is_relative_to(sys.prefix), f"{path} is not the installed one"
configs = importlib.resources.files("dpr_lightning.configs")
print(*sorted(str(path.relative_to(configs)) for path in Path(str(configs)).rglob("*.yaml")), sep="\\n")
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build in, so that no build or egg-info folder is left in, or taken from, the tree under test."""
    copy = tmp_path_factory.mktemp("repository") / "source"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for name in ("dpr_lightning", "callbacks", "configs"):
        copytree(ROOT / name, copy / name, ignore=ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def sdist(repository: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", "dist", ".", cwd=repository)
    return match(repository / "dist", "*.tar.gz")


@pytest.fixture(scope="module")
def wheel(repository: Path) -> Path:
    run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "dist", ".", cwd=repository)
    return match(repository / "dist", "*.whl")


def test_every_package_folder_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    result = {
        ".".join((name, *path.parent.relative_to(ROOT / folder).parts))
        for name, folder in SOURCES.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }
    assert len(result) > 10
    assert result == listed


def test_every_folder_with_modules_is_a_package() -> None:
    folders = {path.parent for folder in SOURCES.values() for path in (ROOT / folder).rglob("*.py")}
    assert not [folder for folder in folders if not (folder / "__init__.py").exists()]


def test_the_wheel_holds_every_module_and_every_config(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names >= expected_files()
    assert not [name for name in names if not name.startswith("dpr_lightning/")]


def test_a_wheel_built_from_the_sdist_is_the_same(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--wheel",
        "--outdir",
        "dist",
        ".",
        cwd=match(tmp_path, "*"),
    )
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(match(tmp_path, "*/dist/*.whl")) as second:
        assert {i.filename: i.CRC for i in first.infolist()} == {i.filename: i.CRC for i in second.infolist()}


@pytest.mark.parametrize("kind", ["wheel", pytest.param("editable", marks=pytest.mark.slow)])
def test_installs_into_a_clean_environment(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "venv")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", *PIP_OPTIONS]
    if kind == "wheel":
        run(*install, str(request.getfixturevalue("wheel")), cwd=tmp_path)
        look_around = LOOK_AROUND
    else:
        # The copy lies outside of the environment, and is what an editable install must import.
        repository = request.getfixturevalue("repository")
        run(*install, "-e", str(repository), cwd=tmp_path)
        look_around = LOOK_AROUND.replace("sys.prefix", repr(str(repository)))
    configs = run(str(python), "-I", "-c", look_around, cwd=tmp_path).split()
    assert configs == sorted(str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml"))
    assert configs
    assert "quickstart" in run(str(python.parent / "dpr"), "--help", cwd=tmp_path)


def expected_files() -> set[str]:
    """Path inside a wheel of each source and config."""
    files = {
        str(Path(*name.split(".")) / path.relative_to(ROOT / folder))
        for name, folder in SOURCES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert len(files) > 30
    return files


def clean_environment(folder: Path) -> Path:
    """Python of a new virtual environment that reaches this one's dependencies, but not its dpr_lightning.

    The folder of the running environment's packages is named in a .pth file. Python adds it to the path without reading
    the .pth files *inside* it, and those are what an editable install consists of.
    """
    venv.create(folder)
    paths = {"base": str(folder), "platbase": str(folder)}
    installed, system = (sysconfig.get_path("purelib", vars=variables) for variables in (paths, None))
    Path(installed, "dependencies.pth").write_text(f"{system}\n", encoding="utf-8")
    python = folder / "bin" / "python"
    probe = "import importlib.util as u; print(u.find_spec('torch') is not None, u.find_spec('dpr_lightning') is None)"
    assert run(str(python), "-I", "-c", probe, cwd=folder).split() == ["True", "True"]
    return python


def run(*command: str, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def match(folder: Path, pattern: str) -> Path:
    """The one file that matches."""
    (result,) = folder.glob(pattern)
    return result
