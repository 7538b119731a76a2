"""The manifest of a run: what a run writes is what later commands read, wherever the folder is."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError
from dpr_lightning.run_manifest import RunManifest, record_stage
from tests.workspace import make_workspace, write_sft_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SFT run, and the file that it held out rows to."""
    folder = tmp_path_factory.mktemp("manifest")
    workspace = make_workspace(folder / "inputs")
    config = Path(write_sft_config(folder, {"source": workspace.sft}, workspace.demonstrations))
    content = yaml.safe_load(config.read_text())
    content["trainer"] |= {"default_root_dir": str(folder / "run" / "sft"), "callbacks": [], "max_steps": 8}
    content["data"]["init_args"]["validation"] = workspace.demonstrations
    content["data"]["init_args"]["allow_overlap"] = True
    content["run"] = {"manifest": str(folder / "run" / "run.json"), "verifier": "exact_match", "wandb": "off"}
    config.write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(config)]) == 0
    return folder / "run"


def test_a_run_can_be_named_by_its_folder(run: Path) -> None:
    for name in (run, run / "run.json", run / "sft"):
        manifest = RunManifest.load(name)
        assert manifest.sft == str(run / "sft" / "policies" / "final")
        assert manifest.policy == manifest.sft
        assert manifest.references == {
            f"{step / 8:.3g}": str(run / "sft" / "policies" / f"step_{step:07d}") for step in (2, 4, 6)
        }
        assert manifest.reference == manifest.references["0.25"]
        assert manifest.verifier == "exact_match"
        assert Path(manifest.train).is_absolute()
        assert Path(manifest.held_out).is_file()
        assert manifest.max_new_tokens is not None
        assert manifest.max_new_tokens > 1


def test_a_moved_run_is_read_as_before(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved")
    manifest = RunManifest.load(tmp_path / "moved")
    assert manifest.sft == str(tmp_path / "moved" / "sft" / "policies" / "final")
    assert all(Path(folder).is_dir() for folder in manifest.references.values())


def test_stages_share_a_manifest(tmp_path: Path) -> None:
    for stage in ("sft", "rl"):
        (tmp_path / stage / "policies" / "final").mkdir(parents=True)
    path = tmp_path / "run.json"
    (tmp_path / "held_out.jsonl").touch()
    record_stage(
        path,
        "sft",
        {
            "policies": str(tmp_path / "sft" / "policies"),
            "held_out": [{"path": str(tmp_path / "held_out.jsonl"), "weight": 2.0}, "owner/name"],
            "max_new_tokens": 7,
        },
    )
    record_stage(path, "rl", {"policies": str(tmp_path / "rl" / "policies"), "max_new_tokens": None})
    manifest = RunManifest.load(path)
    assert manifest.policy == str(tmp_path / "rl" / "policies" / "final")
    assert manifest.max_new_tokens == 7
    # A run that was trained on short answers is compared on whole ones.
    for limit, expected in ((3, 7), (9, 9)):
        record_stage(path, "rl", {"policies": str(tmp_path / "rl" / "policies"), "max_new_tokens": limit})
        assert RunManifest.load(path).max_new_tokens == expected
        assert RunManifest.load(path).longest_demonstration == 7
    assert json.loads(path.read_text())["stages"]["sft"]["held_out"][0] == {"path": "held_out.jsonl", "weight": 2.0}
    assert manifest.held_out[0]["path"] == str(tmp_path / "held_out.jsonl")
    assert manifest.held_out[1] == "owner/name"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no folder of a run: it has no run.json"),
        ("{", "is no manifest of a run"),
        ("[]", "is no manifest of a run"),
        ('{"dpr_lightning_run": 2, "stages": {}}', "of another version"),
    ],
)
def test_what_is_no_manifest_is_refused(content: str | None, says: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=says):
        RunManifest.load(tmp_path)


def test_what_a_run_lacks_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        RunManifest.load(tmp_path / "nowhere")
    record_stage(tmp_path / "run.json", "sft", {"policies": str(tmp_path / "policies"), "command": "dpr sft --model x"})
    manifest = RunManifest.load(tmp_path)
    with pytest.raises(InputError, match=r"the run has not ended\. The command that began it goes on: dpr sft --model"):
        _ = manifest.sft
    with pytest.raises(InputError, match="saved no earlier policies"):
        _ = manifest.references
    record_stage(tmp_path / "other" / "run.json", "rl", {})
    with pytest.raises(InputError, match="Run `dpr sft` first"):
        _ = RunManifest.load(tmp_path / "other").sft
