"""The page of a training run: its curves, each once, and what the run came from."""

from pathlib import Path

import yaml

from dpr_lightning.cli.main import main
from dpr_lightning.reports import Panel, Series
from dpr_lightning.reports.curves import HEIGHT, TOP, draw


def test_the_page_of_a_run_says_what_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/nll,train/gradient_norm\n0,3.0,1.5\n1,2.5,1.0\n")
    record = {
        "command": "dpr fit --config mine.yaml",
        "config_files": ["mine.yaml"],
        "seed_everything": 7,
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "content": {"data.init_args.train": "file 89ab"},
        "model": {"class_path": "dpr_lightning.modules.SupervisedIRL"},
    }
    (tmp_path / "hparams.yaml").write_text(yaml.safe_dump(record))
    assert main(["report", "--run", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    assert page.count(">Gradient norm") == 1
    facts = {"commit": "0123456789ab, with files changed since", "config": "mine.yaml", "seed": "7"}
    for name, value in {**facts, "data.train": "file 89ab"}.items():
        assert f'<th scope="row">{name}</th><td>{value}</td>' in page
    assert "<code>dpr fit --config mine.yaml</code>" in page
    assert "model.class_path" in page
    (tmp_path / "hparams.yaml").unlink()
    assert main(["report", "--run", str(tmp_path)]) == 0
    assert "commit" not in (tmp_path / "report.html").read_text()


def test_an_axis_ends_near_its_values() -> None:
    plot = draw(Panel("norm", [Series("norm", [0, 1, 2], [0.1, 6.2, 0.3])]))
    assert [tick.label for tick in plot.vertical] == ["0", "2", "4", "6"]  # and not up to 8
    assert min(float(part.split()[1]) for part in plot.curves[0].path[1:].split("L")) < TOP + 0.06 * HEIGHT
    constant = draw(Panel("norm", [Series("norm", [0, 1], [2.0, 2.0])]))
    assert len(constant.vertical) > 1
