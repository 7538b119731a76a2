"""`dpr pairs`: what judges and picks make of samples, that it goes on to the bit, and that its file trains."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpr_lightning.cli.main import main
from dpr_lightning.data import PreferenceDataModule
from dpr_lightning.data.row_types import Row
from dpr_lightning.errors import InputError
from dpr_lightning.experiments import preference_pairs
from dpr_lightning.experiments.pair_picks import PairsSpec, pick_pair
from dpr_lightning.experiments.preference_pairs import PairSources, write_pairs
from dpr_lightning.policies import PolicySpec, build_verifier_head
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.run_manifest import record_stage
from tests.workspace import Workspace, make_workspace, write_rows


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return make_workspace(tmp_path_factory.mktemp("pairs"))


@pytest.fixture
def sources(workspace: Workspace) -> PairSources:
    sampling = SamplingOptions(6, batch_size=8)
    return PairSources(workspace.reference, workspace.prompts, workspace.sft, [workspace.reference], sampling=sampling)


def codes(prompt: str, answer: str, metadata: Any) -> float:
    return float(sum(map(ord, answer)))


VERIFIER = f"verifier:{__name__}:codes"


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("judge", [VERIFIER, "dense", "policy", "head"])
def test_a_pair_is_ordered_by_its_judge(judge: str, sources: PairSources, workspace: Workspace, tmp_path: Path) -> None:
    if judge == "policy":
        judge = f"policy:{workspace.reference}"
    if judge == "head":
        model, tokenizer = build_verifier_head(PolicySpec(source=workspace.sft))
        with torch.no_grad():
            model.get_submodule("score").weight.normal_(generator=torch.Generator().manual_seed(0))  # type: ignore[operator]
        model.save_pretrained(tmp_path / "head")  # type: ignore[operator]
        tokenizer.save_pretrained(tmp_path / "head")
        judge = f"head:{tmp_path / 'head'}"
    summary = write_pairs(tmp_path / "pairs.jsonl", PairsSpec(judge, samples=4, limit=12), sources)
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert summary["pairs"] == len(rows) > 2
    assert summary["prompts"] == 12
    assert summary == json.loads((tmp_path / "pairs.json").read_text())
    assert summary["flops"] > 1e5
    for row in rows:
        assert row["chosen_reward"] > row["rejected_reward"]
        assert row["chosen"] != row["rejected"]
        assert row["prompt"].endswith("=")
        assert row["answer"].isdigit()
        if judge == VERIFIER:
            assert row["chosen_reward"] == codes("", row["chosen"], {})
    assert sorted(path.name for path in tmp_path.iterdir() if "head" not in path.name) == ["pairs.json", "pairs.jsonl"]


def test_it_goes_on_where_it_was_killed(sources: PairSources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PairsSpec(VERIFIER, pick="bradley_terry", samples=4)
    whole = write_pairs(tmp_path / "whole.jsonl", spec, sources)
    sampled: list[int] = []
    collect = preference_pairs.collect_answers

    def counting(*arguments: Any, **options: Any) -> Any:
        if len(sampled) == 3:
            raise KeyboardInterrupt
        sampled.append(len(options["indices"]))
        return collect(*arguments, **options)

    monkeypatch.setattr(preference_pairs, "collect_answers", counting)
    with pytest.raises(KeyboardInterrupt):
        write_pairs(tmp_path / "killed.jsonl", spec, sources)
    assert not (tmp_path / "killed.jsonl").exists()
    parts = tmp_path / "killed.parts.jsonl"
    parts.write_text(parts.read_text() + '{"pairs": [{"pro')  # a line that was cut off
    monkeypatch.setattr(preference_pairs, "collect_answers", collect)
    resumed = write_pairs(tmp_path / "killed.jsonl", spec, sources)
    assert resumed.pop("flops") == pytest.approx(whole.pop("flops"), rel=0.1)  # a policy that is loaded is tried once
    assert resumed == whole
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not parts.exists()


def test_parts_of_other_options_are_not_used(sources: PairSources, tmp_path: Path) -> None:
    (tmp_path / "pairs.parts.jsonl").write_text(
        json.dumps({"key": "other"}) + "\n" + json.dumps({"pairs": [], "counts": {}})
    )
    assert write_pairs(tmp_path / "pairs.jsonl", PairsSpec(VERIFIER, limit=2), sources)["prompts"] == 2


def random_draws() -> Iterator[np.random.Generator]:
    for seed in range(4000):
        yield np.random.default_rng(seed)


def test_picks() -> None:
    generator = np.random.default_rng(0)
    assert pick_pair([0.0, 3.0, -1.0, 2.0], "best_worst", 1.0, generator) == (1, 2)
    assert pick_pair([1.0, 1.0], "best_worst", 1.0, generator) is None
    assert pick_pair([1.0, 1.0], "random", 1.0, generator) is None
    assert all(pick_pair([0.0, 1.0], "random", 1.0, random) == (1, 0) for random in islice(random_draws(), 9))
    # Of three responses every pair is as frequent, and a label is right with probability σ(gap/temperature).
    sampled = [pick_pair([0.0, 1.0, 3.0], "bradley_terry", 2.0, random) for random in random_draws()]
    for low, high, gap in ((0, 1, 1.0), (0, 2, 3.0), (1, 2, 2.0)):
        right, wrong = sampled.count((high, low)), sampled.count((low, high))
        assert (right + wrong) / 4000 == pytest.approx(1 / 3, abs=0.03)
        assert right / (right + wrong) == pytest.approx(1 / (1 + np.exp(-gap / 2.0)), abs=0.04)


def test_the_command_takes_a_run_and_its_file_trains(workspace: Workspace, tmp_path: Path) -> None:
    entry = {"policies": str(tmp_path), "train": workspace.prompts, "policy": workspace.sft, "max_new_tokens": 5}
    record_stage(tmp_path / "run.json", "sft", entry)
    output = tmp_path / "pairs" / "pairs.jsonl"
    command = ["pairs", "--run", str(tmp_path), "--policy", workspace.reference, "--sft", workspace.sft]
    command += ["--references", f"[{workspace.reference}]", "--judge", VERIFIER, "--samples", "3"]
    assert main(command) == 0
    data = PreferenceDataModule(str(output), validation=None, cache_dir=None, tokenizer=workspace.sft, batch_size=4)
    data.setup("fit")
    assert data.train_data is not None
    assert len(data.train_data) == len(rows_of(output)) > 5


def test_conversations_keep_their_turns(sources: PairSources, workspace: Workspace, tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "1 + 1 ="},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "+ 3"},
    ]
    row = {"messages": turns, "tools": [{"type": "function", "function": {"name": "add"}}]}
    result = preference_pairs.prompt_columns(Row("file", 1, row), None)
    assert result == {"prompt": turns, "tools": row["tools"]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"judge": "oracle"}, "`judge` is 'oracle'"),
        ({"judge": "verifier:"}, "`judge` is 'verifier:'"),
        ({"judge": VERIFIER, "pick": "median"}, "`pick` is 'median'"),
        ({"judge": VERIFIER, "samples": 1}, "`samples` is 1"),
        ({"judge": VERIFIER, "label_temperature": 0.0}, "`label_temperature` is 0"),
        ({"judge": VERIFIER, "temperature": 0.0}, "`temperature` is 0"),
    ],
)
def test_wrong_options(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        PairsSpec(**options)


def constant(prompt: str, answer: str, metadata: Any) -> float:
    return 1.0


def test_where_no_pair_can_be_made(sources: PairSources, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No prompt of .* gives a pair: of 2 prompts, \d have .* and \d responses"):
        write_pairs(tmp_path / "pairs.jsonl", PairsSpec(f"verifier:{__name__}:constant", limit=2), sources)
    assert not (tmp_path / "pairs.jsonl").exists()
    bare = PairSources(workspace.sft, workspace.prompts)
    for judge, says in (("dense", "`sft` and `references`"), (f"policy:{workspace.sft}", "name `sft`")):
        with pytest.raises(InputError, match=says):
            write_pairs(tmp_path / "pairs.jsonl", PairsSpec(judge), bare)


def test_cross_fitted_policies_answer_prompts_that_they_did_not_learn(
    workspace: Workspace, sources: PairSources, tmp_path: Path
) -> None:
    rows = rows_of(Path(workspace.demonstrations))
    folds = tmp_path / "train.folds"
    for number, learnt in ((1, rows[4:]), (2, [*rows[:4], *rows[8:]])):
        fold = folds / f"fold_{number}"
        shutil.copytree([workspace.sft, workspace.reference][number - 1], fold / "policies" / "final")
        write_rows(fold.with_name(f"{fold.name}.jsonl"), learnt)
    (folds / "folds.json").write_text('{"folds": 2}')
    spec = PairsSpec(VERIFIER, samples=4)
    crossed = replace(sources, folds=str(folds))
    summary = write_pairs(tmp_path / "pairs.jsonl", spec, crossed)
    pairs = rows_of(tmp_path / "pairs.jsonl")
    # The second half was learnt by both; the first four prompts have the answers of one, the next four of the other.
    assert summary["prompts"] == 8
    assert {row["prompt"] for row in pairs} <= {row["prompt"] for row in rows[:8]}
    for number, part in ((0, rows[:4]), (1, rows[4:8])):
        alone = replace(sources, policy=[workspace.sft, workspace.reference][number], sft=None)
        write_pairs(tmp_path / f"alone_{number}.jsonl", spec, alone)
        prompts = [row["prompt"] for row in part]
        expected = [row for row in rows_of(tmp_path / f"alone_{number}.jsonl") if row["prompt"] in prompts]
        assert [row for row in pairs if row["prompt"] in prompts] == expected
    with pytest.raises(InputError, match="no policy there answers a prompt that it did not learn from"):
        write_pairs(tmp_path / "none.jsonl", spec, replace(sources, folds=str(tmp_path)))
