"""Options in messages of `dpr fit` by the names that a config takes."""

import json
from pathlib import Path

import pytest

from dpr_lightning.cli.main import main
from dpr_lightning.lightning_cli.option_names import with_full_names
from tests.workspace import Workspace, write_sft_config

CONFIG = {
    "model": {"class_path": "dpr_lightning.modules.DensePathReinforce"},
    "data": {"class_path": "dpr_lightning.data.RewardDataModule"},
}


@pytest.mark.parametrize(
    ("message", "full"),
    [
        ("Point `source` at it", "Point `model.policy.source` at it"),
        ("choose `over_length: drop`", "choose `data.over_length: drop`"),
        ("`temperature` and `kl.coefficient`", "`data.sampling.temperature` and `model.kl.coefficient`"),
        ("at least `limit_train_batches=0.25`", "at least `trainer.limit_train_batches=0.25`"),
        ("`data.columns`, `model.policy.source`", "`data.columns`, `model.policy.source`"),
        ("`attention` of two", "`attention` of two"),
        ("has 3 as `train` and `answer`", "has 3 as `train` and `answer`"),
        ("give `prompt` and `completion`", "give `prompt` and `completion`"),
    ],
)
def test_a_name_that_one_option_has_is_completed(message: str, full: str) -> None:
    assert with_full_names(message, CONFIG) == full


def test_the_printed_option_is_one_that_the_command_takes(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "1 + 1 =", "completion": "2"}] * 4 + [{"prompt": "1 + 1 =", "completion": "2" * 60}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_sft_config(tmp_path, {"source": workspace.sft}, str(tmp_path / "rows.jsonl"), max_length=20)
    assert main(["fit", "--config", config]) == 2
    option, _, value = capsys.readouterr().err.partition("choose `")[2].partition("`")[0].partition(": ")
    assert option == "data.over_length"
    assert main(["fit", "--config", config, f"--{option}", value]) == 0
