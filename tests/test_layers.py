"""The architecture is the folder list: a layer imports itself or lower ones, and neighbours leave each other alone."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "dpr_lightning"

# Modules that lie directly in the package are the ground; they may import one another.
GROUND = "ground"
LEVELS = {
    GROUND: 0,
    "functional": 1,
    "engine": 2,
    "policies": 3,
    "rollouts": 4,
    "rewards": 4,
    "data": 5,
    "modules": 6,
    "strategies": 6,
    "evaluation": 6,
    "reports": 6,
    "callbacks": 7,
    "lightning_cli": 8,
    "experiments": 9,
    "integrations": 9,
    "workflow": 9,
    "cli": 10,
}
# The package's own names lead to every folder, and nothing inside it imports them.
FACADE = PACKAGE
# The mathematics needs tensors and nothing else.
FUNCTIONAL_MAY_IMPORT = {"torch", "jaxtyping", "math", "typing", "collections", PACKAGE}
DATA_ONLY = {"configs"}


def test_no_part_imports_a_higher_one_or_a_neighbour() -> None:
    sources = dict(package_sources(ROOT))
    assert len(sources) > 30
    assert {part_of(name) for name in sources} >= {"functional", "policies", "modules", "callbacks", "cli"}
    assert not list(violations(sources))


def test_every_folder_has_its_place_in_the_table() -> None:
    folders = {path.parent.name for path in (ROOT / PACKAGE).glob("*/*.py")}
    assert folders <= set(LEVELS), f"give {sorted(folders - set(LEVELS))} a level"


@pytest.mark.parametrize(
    ("module", "source", "says"),
    [
        ("functional.returns", "from dpr_lightning.policies import build_policy", "policies"),
        ("functional.returns", "import numpy as np", "numpy"),
        ("rollouts.sampler", "import dpr_lightning.rewards.cache", "rewards"),
        ("rewards.cache", "from dpr_lightning import rollouts", "rollouts"),
        ("modules.sft", "def f():\n    from dpr_lightning.evaluation.ranking import auc", "evaluation"),
        ("evaluation.statistics", "from dpr_lightning.reports import page", "reports"),
        ("modules.dpr", "from dpr_lightning.callbacks import ReferenceCheckpoints", "callbacks"),
        ("modules.dpr", "from ..cli import main", "cli"),
        ("policies", "from .. import data", "data"),
        ("errors", "from dpr_lightning.functional import returns_to_go", "functional"),
        ("callbacks.samples", "from dpr_lightning.cli.main import main", "cli"),
        ("modules.sft", "from callbacks import samples", "dpr_lightning.callbacks"),
        ("data.chat", "from dpr_lightning.nowhere import thing", "nowhere"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, module: str, source: str, says: str) -> None:
    write_module(tmp_path, module, source)
    result = list(violations(dict(package_sources(tmp_path))))
    assert len(result) == 1
    assert says in result[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "functional.returns",
            "from math import log\nimport torch.nn.functional\nfrom dpr_lightning.errors import InputError",
        ),
        ("functional.returns", "from dpr_lightning.functional.masking import masked_sum\nfrom . import masking"),
        ("modules.dpr", "from dpr_lightning import functional as F\nfrom dpr_lightning.data import RewardDataModule"),
        ("types", "from dpr_lightning.errors import InputError"),
        ("callbacks.samples", "from dpr_lightning.modules import SupervisedIRL\nimport wandb"),
        ("callbacks.samples", "from dpr_lightning.callbacks.tables import table\nfrom .tables import table"),
        ("cli.main", "from dpr_lightning import callbacks, reports\nimport dpr_lightning.evaluation.tasks"),
    ],
)
def test_an_allowed_import_is_let_through(tmp_path: Path, module: str, source: str) -> None:
    write_module(tmp_path, "errors", "")
    write_module(tmp_path, module, source)
    assert not list(violations(dict(package_sources(tmp_path))))


def package_sources(root: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name and file of each module; callbacks/ under the name that it is installed with."""
    for folder, prefix in ((root / PACKAGE, PACKAGE), (root / "callbacks", f"{PACKAGE}.callbacks")):
        for path in sorted(folder.rglob("*.py")):
            inside = path.relative_to(folder).with_suffix("").parts
            yield ".".join((prefix, *inside)).removesuffix(".__init__"), path


def violations(sources: dict[str, Path]) -> Iterator[str]:
    """One sentence for each import that the layers do not allow."""
    for name, path in sources.items():
        part = part_of(name)
        for line, imported in imports(name, path):
            where = f"{path.name}:{line} ({name}) imports {imported}"
            top = imported.partition(".")[0]
            if top in ("callbacks", "configs"):
                yield f"{where}: its installed name is {PACKAGE}.{imported}"
            elif part == "functional" and top not in FUNCTIONAL_MAY_IMPORT:
                yield f"{where}: the mathematics imports {', '.join(sorted(FUNCTIONAL_MAY_IMPORT))} and no more"
            elif name != FACADE and top == PACKAGE and (reason := refusal(part, imported, sources)):
                yield f"{where}: {reason}"


def refusal(importer: str, imported: str, sources: dict[str, Path]) -> str | None:
    """Why part ``importer`` may not import the dotted name ``imported``; None when it may."""
    part = part_of(imported)
    if part == GROUND:
        known = imported == PACKAGE or ".".join(imported.split(".")[:2]) in sources or imported.endswith("__")
        return None if known else f"there is no {imported}, or it has no level"
    if part == importer or part in DATA_ONLY:
        return None
    if LEVELS[part] > LEVELS[importer]:
        return f"{part} (level {LEVELS[part]}) is above {importer} (level {LEVELS[importer]})"
    if LEVELS[part] == LEVELS[importer]:
        return f"{part} and {importer} are neighbours on level {LEVELS[importer]}"
    return None


def part_of(name: str) -> str:
    """Folder of the package in which a dotted name lies."""
    part = [*name.split("."), ""][1]
    return part if part in LEVELS or part in DATA_ONLY else GROUND


def imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of each thing imported anywhere in a file, functions and type-checking blocks included."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]) if base else ".".join(above)
            if base == PACKAGE:
                # `from dpr_lightning import functional`: the part is among the names.
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"
            else:
                yield node.lineno, base


def write_module(root: Path, name: str, source: str) -> None:
    """A module in a tree laid out like the repository; a name without a dot becomes a package if it is a part."""
    head, _, rest = name.partition(".")
    folder = root / "callbacks" if head == "callbacks" else root / PACKAGE / head if head in LEVELS else root / PACKAGE
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f"{rest or '__init__'}.py" if head in LEVELS else f"{head}.py")
    path.write_text(source, encoding="utf-8")


def test_stdlib_modules_allowed_in_functional_exist() -> None:
    assert FUNCTIONAL_MAY_IMPORT - {"torch", "jaxtyping", PACKAGE} <= sys.stdlib_module_names
