"""The table of where time goes knows its operations, and adds up."""

from pathlib import Path

import pytest

from benchmarks import where_time_goes
from benchmarks.where_time_goes import KINDS, REST, kind_of


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::mul", "sums and products of elements"),
        ("aten::mul_", "sums and products of elements"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("_NormBackward", "activations and norms"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::copy_", "copies"),
        ("aten::view", REST),
    ],
)
def test_an_operation_has_its_kind(name: str, kind: str) -> None:
    assert kind_of(name) == kind


@pytest.mark.slow
def test_shares_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--shape", "tiny", "--rows", "4", "--folder", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["where_time_goes", *options])
    where_time_goes.main()
    printed = capsys.readouterr().out.splitlines()
    cells = {line.split("|")[1].strip(): line.split("|")[2:-1] for line in printed if line.startswith("| ")}
    shares = [[float(cell.strip().rstrip("%")) for cell in cells[name]] for name in (*KINDS, REST)]
    for column in zip(*shares, strict=True):
        assert sum(column) == pytest.approx(100, abs=5)  # rounded, eight of them
    assert all(float(cell.strip().rstrip("%")) > 0 for cell in cells["products"])
