"""What `from dpr_lightning import …` offers, and that importing the package costs nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dpr_lightning
from dpr_lightning.data import TextReward
from dpr_lightning.modules import DensePathReinforce
from tests.test_layers import package_sources, violations, write_module

SOURCE = Path(dpr_lightning.__file__).read_text(encoding="utf-8")


def test_importing_the_package_or_asking_for_help_imports_no_torch() -> None:
    program = (
        "import sys, dpr_lightning\n"
        "from dpr_lightning.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)\n"
        "from dpr_lightning import InputError\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


def test_every_name_can_be_imported() -> None:
    assert set(dpr_lightning.__all__) <= set(dir(dpr_lightning))
    for name in dpr_lightning.__all__:
        assert callable(getattr(dpr_lightning, name))
    assert dpr_lightning.DenseReward is TextReward
    assert dpr_lightning.DensePathReinforce is DensePathReinforce
    with pytest.raises(AttributeError, match="no attribute 'DensReward'"):
        dpr_lightning.DensReward  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError):
        from dpr_lightning import DensReward  # type: ignore[attr-defined]  # noqa: F401


def test_type_checkers_see_the_same_names() -> None:
    block = next(node for node in ast.parse(SOURCE).body if isinstance(node, ast.If))
    seen = {alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    seen |= {target.id for node in block.body if isinstance(node, ast.Assign) for target in node.targets}  # type: ignore[attr-defined]
    assert seen - {None} == set(dpr_lightning.__all__)


def test_nothing_inside_the_package_imports_its_own_names(tmp_path: Path) -> None:
    write_module(tmp_path, "data.prompts", "from dpr_lightning import DenseReward")
    assert len(list(violations(dict(package_sources(tmp_path))))) == 1
