"""Every command, on a policy small enough to wait for."""

import json
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from dpr_lightning.cli.main import main
from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.engine import model_inputs
from dpr_lightning.lightning_cli.dpr_cli import run_lightning
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec, build_policy, build_verifier_head, load_tokenizer, save_policy
from dpr_lightning.rewards import DenseReward, RewardSpec
from tests.tiny import write_tiny_policy
from tests.training import quiet_trainer, write_adapter
from tests.workspace import Workspace

EVEN = "tests.cli.test_commands:even_length"
MARKS = {"better": "▲", "no detectable difference": "≈", "worse": "▼"}


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    message = capsys.readouterr().out
    for command in ("fit", "quickstart", "preview", "rewards", "generate", "evaluate", "report", "export", "toy"):
        assert f"\n  {command} " in message


def test_generate_writes_answers_that_a_seed_repeats(workspace: Workspace, tmp_path: Path) -> None:
    def answers(name: str, *more: str) -> list[dict[str, object]]:
        path = tmp_path / name
        arguments = ["--policy", workspace.sft, "--prompts", workspace.prompts, "--output", str(path)]
        assert main(["generate", *arguments, "--max_new_tokens", "5", "--samples", "2", *more]) == 0
        return [json.loads(line) for line in path.read_text().splitlines()]

    first, again = answers("a.jsonl", "--seed", "3"), answers("b.jsonl", "--seed", "3")
    assert len(first) == 32
    assert first == again
    assert first != answers("c.jsonl", "--seed", "4")
    assert all(row["length"] <= 5 for row in first)
    letter = next(row["completion"] for row in first if len(str(row["completion"])) > 2)
    stop = str(letter)[1]
    for row, whole in zip(answers("f.jsonl", "--seed", "3", "--stop_strings", json.dumps([stop])), first, strict=True):
        assert str(whole["completion"]).startswith(str(row["completion"]))
        assert (stop in str(row["completion"])) == (stop in str(whole["completion"]))
        assert row["terminated"] or row == whole
        assert stop not in str(row["completion"])[:-1]
    contrasted = answers("d.jsonl", "--seed", "3", "--references", f"[{workspace.reference}]", "--beta", "0.5")
    assert contrasted != first
    far = answers("e.jsonl", "--seed", "3", "--references", f"[{workspace.reference}]", "--beta", "1e9")
    assert [row["completion"] for row in far] == [row["completion"] for row in first]


def test_evaluate_reports_score_interval_length_and_kl(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    arguments = ["--policy", workspace.reference, "--prompts", workspace.prompts, "--sft", workspace.sft]
    options = ["--max_new_tokens", "5", "--samples", "2", "--verifier", "answer", "--output", str(path)]
    assert main(["evaluate", *arguments, *options]) == 0
    result = json.loads(path.read_text())
    assert 0 <= result["low"] <= result["score"] <= result["high"] <= 1
    assert result["prompts"] == 16
    assert result["score"] <= result["pass@2"] <= 2 * result["score"]
    assert 0 < result["length"] <= 5
    assert abs(result["reverse_kl"]) > 1e-4


def test_an_evaluation_in_words_and_as_json(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", "--policy", workspace.sft, "--prompts", workspace.prompts, "--verifier", "answer"]
    options = ["--max_new_tokens", "3", "--limit", "4", "--json"]
    assert main([*command, *options, "false"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "0/4 right [0%, 49%]; 4/4 cut at 3 tokens"
    assert "wrong, cut: 0 + 0 =" in rest
    assert "  expected: 0" in rest
    assert main([*command, *options, "true"]) == 0
    assert json.loads(capsys.readouterr().out)["cut"] == 4


def test_a_preview_without_a_right_sample(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "preview.json"
    arguments = ["--sft", workspace.sft, "--references", f"[{workspace.reference}]", "--prompts", workspace.prompts]
    options = ["--samples", "2", "--limit", "3", "--max_new_tokens", "2", "--verifier", "answer", "--output", str(path)]
    assert main(["preview", *arguments, *options]) == 4
    output = capsys.readouterr().out
    assert output.startswith("No sample was right: nothing can be ranked (6 samples of 3 prompts).")
    assert "▲" not in output
    result = json.loads(path.read_text())
    assert result["unranked"] == result["verdict"]
    assert result["varies"] is False


def test_rewards_are_those_of_the_library(workspace: Workspace, tmp_path: Path) -> None:
    arguments = ["--sft", workspace.sft, "--references", f"[{workspace.reference}]"]
    output = tmp_path / "rewards"
    assert main(["rewards", *arguments, "--responses", workspace.demonstrations, "--output", str(output)]) == 0
    rows = Dataset.from_parquet(str(output / "rewards.parquet")).to_list()
    assert len(rows) == 16
    dense = DenseReward.from_folders(workspace.sft, [workspace.reference], RewardSpec())
    tokenizer = load_tokenizer(workspace.sft)
    for row in rows[:4]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        tokens = torch.tensor([prompt + row["token_ids"]])
        mask = torch.tensor([[False] * len(prompt) + [True] * len(row["token_ids"])])
        expected = dense.score(tokens, mask).reward[0]
        torch.testing.assert_close(torch.tensor(row["reward"]), expected, atol=1e-5, rtol=0)
        assert row["token_ids"][-1] == tokenizer.eos_token_id
        assert "".join(row["tokens"][:-1]) == tokenizer.decode(row["token_ids"][:-1])
    page = (output / "heatmap.html").read_text()
    assert page.count('class="token') >= sum(len(row["tokens"]) for row in rows)


def even_length(prompt: str, answer: str, metadata: dict[str, Any]) -> float:
    """A verifier that a policy without training answers right now and then."""
    return float(len(answer) % 2 == 0)


def test_preview_writes_every_form_and_a_verdict(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "preview.json"
    arguments = ["--sft", workspace.sft, "--references", f"[{workspace.reference}]", "--prompts", workspace.prompts]
    options = ["--samples", "4", "--max_new_tokens", "5", "--verifier", EVEN, "--beta", "3", "--output", str(path)]
    assert main(["preview", *arguments, *options]) == 0
    assert json.loads(path.read_text())["verdict"].startswith("The optimum of one_sided_centred + ½ log π_SFT at β=3")
    capsys.readouterr()
    assert main(["preview", *arguments, *options, "--reward.form", "log_ratio"]) == 0
    result = json.loads(path.read_text())
    names = [reward["name"] for reward in result["rewards"]]
    assert {"log_ratio", "clipped", "interpolated", "centred", "one_sided", "one_sided_centred"} <= set(names)
    assert result["verdict"].startswith("The optimum of log_ratio at β=3")
    assert "log_ratio" in capsys.readouterr().out
    # The control is a reward that one may have in mind, too.
    assert main(["preview", *arguments, *options, "--reward.form", "log_policy"]) == 0
    assert json.loads(path.read_text())["verdict"].startswith("The optimum of log π_SFT (sharpening) at β=3")


def test_best_of_draws_a_curve_for_each_way_to_pick(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head, tokenizer = build_verifier_head(PolicySpec(source=workspace.sft))
    torch.nn.init.normal_(head.score.weight)
    save_policy(head, tokenizer, tmp_path / "head", PolicySpec(source=workspace.sft))
    arguments = ["--sft", workspace.sft, "--references", f"[{workspace.reference}]", "--prompts", workspace.prompts]
    arguments += ["--verifier", "answer", "--max_new_tokens", "5", "--output", str(tmp_path / "out")]
    assert main(["best_of", *arguments, "--samples", "6", "--head", str(tmp_path / "head")]) == 0
    result = json.loads((tmp_path / "out" / "best_of.json").read_text())
    names = [ranking["name"] for ranking in result["rankings"]]
    assert names[-2:] == ["verifier_head", "oracle"]
    assert {"log_ratio", "one_sided_centred", "log_policy"} <= set(names)
    assert all(list(ranking["best_of"]) == ["1", "2", "4", "6"] for ranking in result["rankings"])
    # The best of one sample is the same for every ranking.
    assert len({round(ranking["best_of"]["1"]["mean"], 12) for ranking in result["rankings"]}) == 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Best of n" in page
    verdicts = [ranking["gain"]["verdict"] for ranking in result["rankings"]]
    assert re.findall(r'<b class="\w+">(.)', page) == [MARKS[verdict] for verdict in verdicts]
    # No sample of an untrained policy is right: nothing can be ranked, and the table is written nevertheless.
    assert main(["preview", *arguments[:10], "--samples", "6", "--output", str(tmp_path / "p.json")]) == 4
    table = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "reward_table.py"))["main"]
    capsys.readouterr()
    table(str(tmp_path / "out" / "best_of.json"), str(tmp_path / "p.json"))
    assert "\n| one_sided |" in capsys.readouterr().out
    capsys.readouterr()
    for options, message in (
        (["--samples", "1"], "needs at least 2"),
        (["--head", workspace.sft], "holds no verifier head"),
        (["--reward.length_normalise", "true"], "leave `position_zscore`"),
    ):
        assert main(["best_of", *arguments, *options]) == 2
        assert message in capsys.readouterr().err


def test_dpr_trains_from_a_config_and_exports(
    workspace: Workspace, dpr_config: Callable[..., str], tmp_path: Path
) -> None:
    assert main(["fit", "--config", dpr_config(model={"estimator": "all_actions", "credit": {"discount": 0.5}})]) == 0
    assert main(["export", "--source", workspace.sft, "--output", str(tmp_path / "exported")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    original = AutoModelForCausalLM.from_pretrained(workspace.sft)
    tokens = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(exported(tokens).logits, original(tokens).logits, atol=0, rtol=0)


@pytest.mark.parametrize("estimator", ["all_actions", "reinforce"])
def test_packed_rows_train_as_padded_ones(
    estimator: str,
    workspace: Workspace,
    dpr_config: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As with flash attention, of the policy and of the frozen models; `sdpa` separates packed rows as well."""
    # Adam would make steps of full size of gradients that are rounding alone.
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    config, weights = dpr_config(model={"estimator": estimator, "optimizer": optimizer}), []
    for packed in (False, True):
        monkeypatch.setattr(model_inputs, "packs_rows", lambda _, packed=packed: packed)
        folder = str(tmp_path / str(packed))
        model = run_lightning(["fit", "--config", config, "--trainer.default_root_dir", folder]).model
        weights.append(torch.cat([weight.detach().flatten() for weight in model.policy.parameters()]))
    torch.testing.assert_close(*weights, atol=1e-6, rtol=0)


def test_audit_tells_with_its_exit_code(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policies that learnt nothing have no reward that locates a wrong token."""
    output = tmp_path / "audit.json"
    arguments = ["--sft", workspace.sft, "--references", f"[{workspace.reference}]", "--output", str(output)]
    options = ["--demonstrations", workspace.demonstrations, "--verifier", "answer", "--max_new_tokens", "5"]
    assert main(["audit", *arguments, *options]) == 3
    message = capsys.readouterr().out
    assert "No reward passes" in message
    assert "one_sided" in message
    result = json.loads(output.read_text())
    assert len(result["audits"]) == 5
    assert not any(entry["passes"] for entry in result["audits"] if entry["form"] != "log_policy")
    assert len(result["suspects"]) == 16
    assert result["suspects"][0]["where"].split("/")[-1].startswith("d.jsonl:")
    rewards = [entry["reward"] for entry in result["suspects"]]
    assert rewards == sorted(rewards)
    monkeypatch.setattr("dpr_lightning.evaluation.audit.LOCALISES", 1.0)
    monkeypatch.setattr("dpr_lightning.evaluation.audit.SEPARATES", 0.0)
    assert main(["audit", *arguments, *options]) == 0
    assert "against" in capsys.readouterr().out
    assert main(["audit", "--sft", workspace.sft, "--references", "[]", *options]) == 2
    assert "at least one reference" in capsys.readouterr().err


def test_export_extrapolates_away_from_a_reference(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """θ + w·(θ − θ_ref), tied weights once; an adapter counts as what it is merged into."""
    adapter = write_adapter(workspace.sft, tmp_path / "adapter")
    for name, source, reference, strength in (
        ("on", workspace.sft, workspace.reference, 0.5),
        ("back", workspace.sft, workspace.reference, -1.0),
        ("merged", adapter, workspace.sft, 2.0),
    ):
        arguments = ["--source", source, "--reference", reference, "--extrapolation", str(strength)]
        assert main(["export", *arguments, "--output", str(tmp_path / name)]) == 0
        ours, earlier, result = (
            dict(build_policy(PolicySpec(source=str(folder)), trainable=False)[0].named_parameters())
            for folder in (source, reference, tmp_path / name)
        )
        for weight in result:
            expected = ours[weight] + strength * (ours[weight] - earlier[weight])
            torch.testing.assert_close(result[weight], expected, atol=2e-6, rtol=0)
    assert main(["export", "--source", workspace.sft, "--extrapolation", "1", "--output", str(tmp_path / "no")]) == 2
    assert "give both, a folder and a number" in capsys.readouterr().err
    arguments = ["--source", workspace.sft, "--reference", workspace.reference, "--output", str(tmp_path / "no")]
    assert main(["export", *arguments]) == 2
    assert "give both, a folder and a number" in capsys.readouterr().err
    other = str(write_tiny_policy(tmp_path / "other", hidden_size=16))
    arguments = ["--source", workspace.sft, "--reference", other, "--output", str(tmp_path / "no")]
    assert main(["export", *arguments, "--extrapolation", "1"]) == 2
    assert "two checkpoints of one run" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_checkpoint_of_training_is_extrapolated_too(workspace: Workspace, tmp_path: Path) -> None:
    checkpoint = tmp_path / "kept.ckpt"
    module = SupervisedIRL(PolicySpec(source=workspace.sft))
    trainer = quiet_trainer(tmp_path, max_steps=1)
    trainer.fit(
        module,
        datamodule=DemonstrationDataModule(workspace.demonstrations, batch_size=4, cache_dir=None, validation=None),
    )
    trainer.save_checkpoint(checkpoint)
    arguments = ["--source", workspace.sft, "--checkpoint", str(checkpoint), "--reference", workspace.reference]
    assert main(["export", *arguments, "--extrapolation", "0.5", "--output", str(tmp_path / "moved")]) == 0
    ours, earlier = dict(module.policy.named_parameters()), _weights(workspace.reference)
    for name, weight in _weights(str(tmp_path / "moved")).items():
        expected = ours[name] + 0.5 * (ours[name] - earlier[name])
        torch.testing.assert_close(weight, expected, atol=2e-6, rtol=0)


def _weights(folder: str) -> dict[str, torch.Tensor]:
    return dict(build_policy(PolicySpec(source=folder), trainable=False)[0].named_parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "at least one sample"),
        (["--limit", "0"], "at least 1 row"),
        (["--limit", "-1"], "at least 1 row"),
        (["--limit", "1"], "at least 2 scores"),
    ],
)
def test_too_few_to_evaluate(
    arguments: list[str], message: str, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated = ["--policy", workspace.sft, "--prompts", workspace.prompts, "--max_new_tokens", "3"]
    assert main(["evaluate", *evaluated, *arguments]) == 2
    assert message in capsys.readouterr().err
