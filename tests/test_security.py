"""Files are not trusted, and secrets stay where they are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dpr_lightning.cli.main import main
from dpr_lightning.policies import PolicySpec
from tests.workspace import make_workspace, write_sft_config

ROOT = Path(__file__).parents[1]
SOURCES = [*sorted((ROOT / "dpr_lightning").rglob("*.py")), *sorted((ROOT / "callbacks").glob("*.py"))]
# What runs what it reads.
FORBIDDEN = {"pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "os.system", "eval", "exec", "dill.load"}
SECRETS = {
    "OPENAI_API_KEY": "sk-secret-of-openai-0001",
    "HF_TOKEN": "hf_secret_of_hugging_face_0002",
    "AWS_SECRET_ACCESS_KEY": "secret/of/amazon/0003",
    "WANDB_API_KEY": "0004secretofweightsandbiases000000000000",
}


def _calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def _faults(path: Path) -> Iterator[str]:
    for name, call in _calls(path):
        options = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name in FORBIDDEN or options.get("shell") == "True":
            yield f"{path}:{call.lineno} calls {name}"
        if name == "torch.load" and options.get("weights_only") != "True":
            yield f"{path}:{call.lineno} loads what may run"
        if options.get("trust_remote_code") == "True":
            yield f"{path}:{call.lineno} trusts foreign code"


def test_nothing_that_is_read_is_run() -> None:
    assert len(SOURCES) > 100
    assert not [fault for path in SOURCES for fault in _faults(path)]


@pytest.mark.parametrize(
    "line",
    ["torch.load(path)", "pickle.load(file)", "yaml.load(text)", "run(x, shell=True)", "f(trust_remote_code=True)"],
)
def test_the_test_sees_what_it_looks_for(line: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(line)
    assert list(_faults(tmp_path / "bad.py"))


def test_foreign_code_is_off() -> None:
    assert PolicySpec(source="anything").trust_remote_code is False
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert "trust_remote_code: true" not in path.read_text()


def test_secrets_of_the_environment_are_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run with every logger, a policy, a checkpoint, an average, a report, and an error with its traceback."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    workspace = make_workspace(tmp_path / "workspace")
    config = Path(write_sft_config(tmp_path, {"source": workspace.sft}, workspace.demonstrations))
    settings = yaml.safe_load(config.read_text())
    folder = str(tmp_path / "run")
    settings["trainer"] |= {
        "log_every_n_steps": 1,
        "default_root_dir": folder,
        "enable_checkpointing": True,
        "logger": [
            {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": folder, "name": "", "version": ""},
            },
            {
                "class_path": "dpr_lightning.callbacks.WandbLogger",
                "init_args": {"project": "test", "save_dir": folder, "offline": True},
            },
        ],
        "callbacks": [
            {
                "class_path": "dpr_lightning.callbacks.ReferenceCheckpoints",
                "init_args": {"folder": f"{folder}/policies"},
            },
            {"class_path": "dpr_lightning.callbacks.ResumableCheckpoints", "init_args": {"folder": f"{folder}/kept"}},
        ],
    }
    config.write_text(yaml.safe_dump(settings))
    assert main(["fit", "--config", str(config)]) == 0
    assert main(["report", "--run", folder]) == 0
    monkeypatch.setattr("dpr_lightning.cli.main.run", lambda arguments: 1 / 0)
    assert main(["report", "--run", folder]) == 1
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert {".csv", ".yaml", ".html", ".safetensors", ".wandb", ".txt", ".ckpt"} <= {path.suffix for path in files}
    output = "".join(capsys.readouterr())
    for secret in SECRETS.values():
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert secret not in output
