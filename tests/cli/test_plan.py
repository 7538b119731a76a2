"""What `dpr plan` counts without weights, against what training really takes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from dpr_lightning.cli.plan_command import Plan, plan, what_helps
from dpr_lightning.errors import InputError
from tests.heads import write_head
from tests.live_peak import measured_peak
from tests.tiny import write_decoder, write_tiny_policy
from tests.training import write_weaker_policy
from tests.workspace import Workspace, write_dpr_config, write_rows, write_sft_config

ROOT = Path(__file__).parents[2]
TOLERANCE = 0.05


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of a quarter of a million weights, and rows that are all as long as they may be."""
    folder = tmp_path_factory.mktemp("plan")
    write_tiny_policy(folder / "sft", hidden_size=96, layers=2)
    write_weaker_policy(folder / "sft", folder / "reference")
    rows = [{"prompt": chr(97 + n), "completion": "1" * 62} for n in range(16)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _planned(config: str) -> Plan:
    return plan(["--config", config])


@pytest.mark.parametrize(
    ("policy", "model", "trainer"),
    [
        ({}, {}, {}),
        ({"gradient_checkpointing": True}, {}, {}),
        ({"lora": {"rank": 4}}, {}, {}),
        ({}, {}, {"accumulate_grad_batches": 2}),
        ({}, {}, {"precision": "bf16-mixed"}),
        pytest.param({"dtype": "bfloat16"}, {}, {}, marks=pytest.mark.slow),
        ({}, {"loss": "iq_learn", "iq_learn": {"chi2_alpha": 0.5, "chi2_warmup_steps": 0}}, {}),
    ],
)
def test_imitation(
    policy: dict[str, Any], model: dict[str, Any], trainer: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    rows, policy = str(folder / "rows.jsonl"), {"source": str(folder / "sft"), **policy}
    config = write_sft_config(tmp_path, policy, rows, model, trainer, max_length=64)
    measured, planned = measured_peak(config), _planned(config)
    assert planned.peak == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize("kind", ["SelfPlay", pytest.param("VerifierHead", marks=pytest.mark.slow)])
def test_pairs(kind: str, folder: Path, tmp_path: Path) -> None:
    """Long prompts with long answers, and long demonstrations, in one micro-batch."""
    rows = [{"prompt": "1", "completion": "1" * 62}, {"prompt": "2" * 62, "completion": "1"}]
    config = Path(write_sft_config(tmp_path, {"source": str(folder / "sft")}, "", max_length=64))
    content = yaml.safe_load(config.read_text())
    content["model"]["class_path"] = f"dpr_lightning.modules.{kind}"
    data = {"train": write_rows(tmp_path / "rows.jsonl", rows * 4), "opponent": str(folder / "reference")}
    data |= {"sampling": {"max_new_tokens": 8}, "length_ratio": 100.0}
    content["data"] = {
        "class_path": "dpr_lightning.data.SelfPlayDataModule",
        "init_args": content["data"]["init_args"] | data,
    }
    if kind == "SelfPlay":
        content["model"]["init_args"]["check_start"] = False
    config.write_text(yaml.safe_dump(content))
    measured, planned = measured_peak(str(config)), _planned(str(config))
    assert planned.peak == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        pytest.param("gemma2", {"head_dim": 16}, marks=pytest.mark.slow),
        ("qwen3_moe", {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}),
    ],
)
def test_other_architectures(kind: str, fields: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    """One that makes constants when it is built, and one that multiplies with the weights of all experts at once."""
    source = write_decoder(tmp_path / "base", kind, max_position_embeddings=64, **fields)
    config = write_sft_config(tmp_path, {"source": source}, str(folder / "rows.jsonl"), max_length=64)
    measured, planned = measured_peak(config), _planned(config)
    assert planned.peak == pytest.approx(measured, rel=TOLERANCE)


def test_layers_that_look_at_what_is_in_tensors_are_said(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def looks(module: Any, hidden: Tensor, **_: Any) -> Tensor:
        return hidden if bool((hidden > 0).any()) else -hidden

    monkeypatch.setattr(LlamaDecoderLayer, "forward", looks)
    config = write_sft_config(tmp_path, {"source": str(folder / "sft")}, str(folder / "rows.jsonl"))
    with pytest.raises(InputError, match=r"cannot count for this model.*max_steps 2"):
        _planned(config)


@pytest.mark.parametrize(
    ("model", "accumulate"),
    [
        pytest.param({"estimator": "reinforce"}, 1, marks=pytest.mark.slow),
        ({"estimator": "all_actions", "credit": {"discount": 0.0}}, 1),
        pytest.param({"estimator": "all_actions", "credit": {"discount": 0.0}}, 4, marks=pytest.mark.slow),
        # Rollouts take more than learning does, in parts of two answers.
        pytest.param({"estimator": "reinforce"}, 8, marks=pytest.mark.slow),
        pytest.param({"policy": {"lora": {"rank": 2}}, "estimator": "reinforce"}, 1, marks=pytest.mark.slow),
    ],
)
def test_reinforcement(model: dict[str, Any], accumulate: int, folder: Path, tmp_path: Path) -> None:
    rows = str(folder / "rows.jsonl")
    workspace = Workspace(str(folder / "sft"), str(folder / "reference"), rows, rows)
    config = Path(
        write_dpr_config(
            tmp_path, workspace, max_prompt_length=1, sampling={"max_new_tokens": 12}, prompts_per_rollout=8
        )
    )
    content = yaml.safe_load(config.read_text())
    policy = {"source": workspace.sft, **model.get("policy", {})}
    content["model"]["init_args"] |= model | {"policy": policy}
    content["trainer"]["accumulate_grad_batches"] = accumulate
    config.write_text(yaml.safe_dump(content))
    measured, planned = measured_peak(str(config)), _planned(str(config))
    assert planned.peak == pytest.approx(measured, rel=TOLERANCE)


@pytest.mark.parametrize(
    ("model", "accumulate"),
    [
        ({"estimator": "reinforce"}, 1),
        ({"estimator": "all_actions", "credit": {"discount": 0.0}}, 2),
    ],
)
@pytest.mark.slow
def test_prompts_that_are_read_once(model: dict[str, Any], accumulate: int, folder: Path, tmp_path: Path) -> None:
    """Eight answers to each of four prompts that are longer than they."""
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"prompt": chr(97 + n) * 48}) + "\n" for n in range(8)))
    workspace = Workspace(str(folder / "sft"), str(folder / "reference"), str(rows), str(rows))
    data = {"max_prompt_length": 48, "sampling": {"max_new_tokens": 16}, "prompts_per_rollout": 4}
    config = Path(write_dpr_config(tmp_path, workspace, **data, samples_per_prompt=8))
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"] |= model | {"policy": {"source": workspace.sft}}
    content["trainer"]["accumulate_grad_batches"] = accumulate
    config.write_text(yaml.safe_dump(content))
    measured, planned = measured_peak(str(config)), _planned(str(config))
    assert planned.peak == pytest.approx(measured, rel=TOLERANCE)
    content["data"]["init_args"] |= {"samples_per_prompt": 1, "prompts_per_rollout": 32}
    content["model"]["init_args"]["credit"] = {"baseline": "position", **model.get("credit", {})}
    config.write_text(yaml.safe_dump(content))
    assert planned.peak < 0.8 * _planned(str(config)).peak


@pytest.mark.parametrize("kind", ["head", pytest.param("policy", marks=pytest.mark.slow)])
def test_scorers(kind: str, folder: Path, tmp_path: Path) -> None:
    rows, sft = str(folder / "rows.jsonl"), str(folder / "sft")
    scorer = write_head(sft, tmp_path / "head") if kind == "head" else write_weaker_policy(sft, tmp_path / "policy")
    workspace = Workspace(sft, str(folder / "reference"), rows, rows)
    data = {"max_prompt_length": 1, "sampling": {"max_new_tokens": 12}, "prompts_per_rollout": 8}
    measured = measured_peak(write_dpr_config(tmp_path, workspace, **data, scorer={kind: scorer}))
    config = write_dpr_config(tmp_path, workspace, **data)
    with_scorer, without = plan(["--config", config, f"--data.scorer.{kind}", "later"]), _planned(config)
    assert with_scorer.peak == pytest.approx(measured, rel=TOLERANCE)
    weights = load_file(Path(scorer) / "model.safetensors").values()
    added = sum(with_scorer.stays.values()) - sum(without.stays.values())
    assert added == pytest.approx(sum(value.numel() * 4 for value in weights), rel=1e-3)  # and constants


@pytest.mark.slow
def test_a_copy_that_draws_ahead(folder: Path, tmp_path: Path) -> None:
    """Its weights stay, and what it takes comes on top of what the policy does meanwhile."""
    rows = str(folder / "rows.jsonl")
    workspace = Workspace(str(folder / "sft"), str(folder / "reference"), rows, rows)
    config = write_dpr_config(tmp_path, workspace, max_prompt_length=1, prompts_per_rollout=16)
    alone, ahead = _planned(config), plan(["--config", config, "--data.draw_ahead", "same"])
    (copied,) = (count for name, count in ahead.stays.items() if name not in alone.stays)
    assert copied == sum(value.numel() * 4 for value in load_file(folder / "sft" / "model.safetensors").values())
    added = {name: count - alone.phases[name] for name, count in ahead.phases.items()}
    sampling = next(count for name, count in alone.phases.items() if name.startswith("sampling"))
    assert sorted(added.values()) == [0, sampling, sampling]
    saved = re.search(
        r"--data\.draw_ahead null +([\d,.]+) MiB", what_helps(["--config", config, "--data.draw_ahead", "same"])
    )
    assert saved is not None
    assert float(saved[1].replace(",", "")) == pytest.approx((ahead.peak - alone.peak) / 2**20, abs=0.1)


def test_frozen_adapters_lie_on_the_base_of_the_policy(folder: Path, tmp_path: Path) -> None:
    """Those of π_SFT and a reference, which need not be there yet, take as much as two moments of one in training."""
    rows = str(folder / "rows.jsonl")
    workspace = Workspace(str(folder / "sft"), str(tmp_path / "later"), rows, rows)
    config = write_dpr_config(tmp_path, workspace, max_prompt_length=4)
    planned = plan(["--config", config, "--model.policy.lora.rank", "2", "--data.sft", str(tmp_path / "sft_later")])
    frozen = planned.stays["2 frozen adapters on its base"]
    assert frozen == pytest.approx(planned.stays["optimizer"], rel=0.01)  # and a number of steps for each weight
    assert 0 < frozen < planned.stays["weights"] / 10


@pytest.mark.slow
def test_float16_takes_as_much_as_bfloat16(folder: Path, tmp_path: Path) -> None:
    result = []
    for precision in ("16-mixed", "bf16-mixed", "32-true"):
        trainer = {"precision": precision}
        source = {"source": str(folder / "sft")}
        config = write_sft_config(tmp_path, source, str(folder / "rows.jsonl"), trainer=trainer, max_length=64)
        result.append(_planned(config).peak)
    assert result[0] == result[1] != result[2]


def test_what_it_cannot_count_is_said(folder: Path, tmp_path: Path) -> None:
    boring = "lightning.pytorch.demos.boring_classes.Boring"
    config = tmp_path / "boring.yaml"
    config.write_text(f"model: {{class_path: {boring}Model}}\ndata: {{class_path: {boring}DataModule}}\n")
    with pytest.raises(InputError, match=r"PolicyModule, and BoringModel is not.*max_steps 2"):
        plan(["--config", str(config)])
    policy = {"source": str(folder / "sft")}
    sft = write_sft_config(tmp_path, policy, str(folder / "rows.jsonl"))
    strategy = "lightning.pytorch.strategies.SingleDeviceStrategy"
    with pytest.raises(InputError, match="not SingleDeviceStrategy"):
        plan(["--config", sft, "--trainer.strategy.class_path", strategy])
    with pytest.raises(InputError, match=r"config\.json"):
        plan(["--config", str(ROOT / "configs" / "toy" / "sft.yaml"), "--model.policy.source", "/nowhere"])
