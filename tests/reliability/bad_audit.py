"""Wrong input of `dpr audit --rows train`, with words of the error messages."""

import json
import shutil

import yaml

from dpr_lightning.run_manifest import record_stage
from tests.reliability.kit import GOOD, Case, Kit
from tests.workspace import write_rows


def _audit(kit: Kit, *options: str, rows: str = "train", config: bool = True) -> list[str]:
    """`dpr audit` of a run on two rows."""
    policies = kit.folder / "sft" / "policies"
    shutil.copytree(kit.workspace.sft, policies / "final")
    shutil.copytree(kit.workspace.reference, policies / "step_0000002")
    (policies / "references.json").write_text(json.dumps({"step_0000002": 0.5, "final": 1.0}))
    train = write_rows(kit.folder / "train.jsonl", [GOOD, {"prompt": "2 + 2 =", "completion": "4"}])
    if config:
        data = {"class_path": "dpr_lightning.data.DemonstrationDataModule", "init_args": {"train": train}}
        model = {"class_path": "dpr_lightning.modules.SupervisedIRL", "init_args": {"policy": {}}}
        (policies.parent / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    entry = {"policies": str(policies), "train": train, "policy": {"source": kit.workspace.sft}}
    record_stage(kit.folder / "run.json", "sft", entry)
    return ["audit", "--run", str(kit.folder), "--rows", rows, *options]


def _without_run(kit: Kit) -> list[str]:
    names = {"sft": kit.workspace.sft, "references": f"[{kit.workspace.reference}]"}
    options = [f"--{name}={value}" for name, value in names.items()]
    return ["audit", *options, "--demonstrations", kit.workspace.demonstrations, "--rows", "train", "--folds", "2"]


AUDIT_CASES: dict[str, dict[str, Case]] = {
    "Folds of `dpr audit --rows train`": {
        "one fold": Case(lambda kit: _audit(kit, "--folds", "1"), ("`folds` is 1", "take 2 or more")),
        "more folds than prompts": Case(
            lambda kit: _audit(kit, "--folds", "3"),
            ("`folds` is 3", "has 2 different prompts", "2 or less"),
        ),
        "folds that take no step": Case(
            lambda kit: _audit(kit, "--folds", "2", "--fold_share", "0"), ("`fold_share` is 0", "above 0")
        ),
        "a suspicion that needs folds": Case(
            lambda kit: _audit(kit, "--suspicion", "crossfitted"),
            ("`suspicion: crossfitted`", "Set `folds`"),
        ),
        "folds without a use": Case(
            lambda kit: _audit(kit, "--folds", "2", "--suspicion", "memorised"),
            ("`suspicion: memorised`", "Leave one of the two out"),
        ),
        "folds of rows that were not trained on": Case(
            lambda kit: _audit(kit, "--folds", "2", rows="held_out"), ("`folds`", "options of `rows: train` alone")
        ),
        "folds without a run": Case(_without_run, ("`folds` and `plant` repeat the SFT of a run", "--run FOLDER")),
        "folds of a run whose config is gone": Case(
            lambda kit: _audit(kit, "--folds", "2", config=False), ("has no config", "config.yaml", "dpr sft")
        ),
        "no mistakes to plant": Case(lambda kit: _audit(kit, "--plant", "0"), ("`plant` is 0", "0.5 at most")),
        "mistakes in nearly all rows": Case(
            lambda kit: _audit(kit, "--plant", "0.9"), ("`plant` is 0.9", "0.5 at most")
        ),
        "mistakes in rows that were not trained on": Case(
            lambda kit: _audit(kit, "--plant", "0.1", rows="held_out"), ("`plant`", "options of `rows: train` alone")
        ),
    }
}
