"""Rollouts with rewards: order, cutting, resuming, what is refused, and what is saved."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from filelock import FileLock

from dpr_lightning.callbacks import RolloutSamples
from dpr_lightning.data import RewardDataModule
from dpr_lightning.data.rollout_loader import RolloutLoader
from dpr_lightning.engine import micro_batches
from dpr_lightning.errors import InputError
from dpr_lightning.functional import action_positions
from dpr_lightning.modules import CreditSpec, DensePathReinforce, RolloutAlgorithm, SupervisedIRL
from dpr_lightning.policies import PolicySpec
from dpr_lightning.rewards import DenseReward, RewardSpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch
from tests.training import quiet_trainer, write_adapter, write_prompts, write_weaker_policy

ACTIONS = torch.tensor([3, 1, 5, 2, 4])


def rollout_of(epoch: int, index: int) -> RolloutBatch:
    """Five responses of 1 to 5 tokens after prompts of two; every number says where it came from."""
    mask = torch.zeros(5, 9, dtype=torch.bool)
    for row, count in enumerate(ACTIONS.tolist()):
        mask[row, 2 : 2 + count] = True
    value = torch.arange(25.0).reshape(5, 5) + 100 * index + 1000 * epoch
    rows = torch.arange(5)
    return RolloutBatch(torch.arange(45).reshape(5, 9), mask, rows > 2, rows, value, value, value, value, value,
                        torch.tensor(0.0))  # fmt: skip


class WithoutCredit(RolloutAlgorithm):
    """Learns from rollouts as they are."""

    def credit(self, rollout: RolloutBatch) -> RolloutBatch:
        return rollout


class Source:
    """Records the requests that it receives."""

    shares_prompts = False

    def __init__(self) -> None:
        self.requests: list[tuple[int, int]] = []

    def scored_rollout(self, epoch: int, index: int) -> RolloutBatch:
        self.requests.append((epoch, index))
        return rollout_of(epoch, index)

    def with_actions(self, batch: RolloutBatch) -> RolloutBatch:
        return batch


def loader_of(source: Source, **options: Any) -> RolloutLoader:
    settings: dict[str, Any] = {
        "rollouts_per_epoch": 2, "refresh_every": 1, "accumulate": 2, "sum_over_ranks": lambda value: value
    }  # fmt: skip
    return RolloutLoader(source, WithoutCredit(PolicySpec(source="nowhere")).learn_from, **(settings | options))


def test_an_epoch_read_as_lightning_reads_it() -> None:
    """The trainer stops after len(loader) batches, without running the iterator to its end."""
    source = Source()
    loader = loader_of(source, refresh_every=2)
    assert len(loader) == 2 * 2 * 2
    for epoch in range(3):
        batches = iter(loader)
        for _ in range(len(loader)):
            next(batches)
        assert source.requests == [(before, index) for before in range(epoch + 1) for index in range(2)]


def test_a_rollout_is_made_only_when_its_first_batch_is_asked_for() -> None:
    source = Source()
    batches = iter(loader_of(source))
    assert source.requests == []
    next(batches)
    next(batches)
    assert source.requests == [(0, 0)]
    next(batches)
    assert source.requests == [(0, 0), (0, 1)]


@pytest.mark.parametrize(("read", "then"), [(2, (0, 1)), (4, (1, 0)), (6, (1, 1))])
def test_a_resumed_run_goes_on_at_the_next_rollout(read: int, then: tuple[int, int]) -> None:
    before = loader_of(Source())
    batches = iter(before)
    for number in range(read):
        if number == len(before):
            batches = iter(before)
        next(batches)
    source = Source()
    after = loader_of(source)
    after.load_state_dict(before.state_dict())
    next(iter(after))
    assert source.requests == [then]


def test_micro_batches_hold_every_token_once_and_the_whole_count() -> None:
    batches = list(loader_of(Source(), rollouts_per_epoch=1, accumulate=3))
    assert [float(batch.num_tokens) for batch in batches] == [15.0] * 3
    whole = rollout_of(0, 0)
    seen: dict[int, RolloutBatch] = {}
    for batch in batches:
        lengths = batch.mask.sum(1)
        assert batch.reward.shape[1] == int(lengths.max())
        assert bool(batch.mask[:, -1].any())
        for index, row in enumerate(batch.prompt.tolist()):
            count = int(lengths[index])
            assert row not in seen
            seen[row] = batch
            assert count == ACTIONS[row]
            for name in ("reward", "advantage", "behaviour_logprob", "sft_logprob", "reference_logprob"):
                assert torch.equal(getattr(batch, name)[index, :count], getattr(whole, name)[row, :count])
            assert torch.equal(batch.tokens[index][batch.mask[index]], whole.tokens[row][whole.mask[row]])
            assert batch.terminated[index] == whole.terminated[row]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    longest = [int(batch.mask.sum(1).max()) for batch in batches]
    assert longest == sorted(longest)


def test_splitting_keeps_rows_of_like_length_together() -> None:
    rollout = rollout_of(0, 0)
    assert [rows.tolist() for rows in micro_batches(rollout.tokens, rollout.mask, 2)] == [[1, 3, 0], [4, 2]]
    assert next(rollout.split([torch.tensor([1])])).tokens.shape == (1, 3)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_prompts(tmp_path_factory.mktemp("data") / "prompts.jsonl", 6)


@pytest.fixture(scope="module")
def references(tiny_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("references")
    return [write_weaker_policy(tiny_policy_folder, folder / str(seed), seed=seed) for seed in (1, 2)]


@pytest.fixture
def make(prompts: str, tiny_policy_folder: Path, references: list[str]) -> Callable[..., RewardDataModule]:
    def data(**options: Any) -> RewardDataModule:
        settings: dict[str, Any] = {
            "prompts": prompts,
            "sft": str(tiny_policy_folder),
            "references": references[:1],
            "sampling": SamplingOptions(5),
            "samples_per_prompt": 2,
            "prompts_per_rollout": 3,
        }
        return RewardDataModule(**(settings | options))

    return data


def rollouts_of(
    data: RewardDataModule, policy: str, folder: Path, steps: int = 1, estimator: Any = "reinforce", **options: Any
) -> list[RolloutBatch]:
    """The batches of a run."""
    saved: list[RolloutBatch] = []

    class Keep(lightning.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            saved.append(batch)

    module = DensePathReinforce(
        PolicySpec(source=policy), estimator, credit=CreditSpec(discount=1.0, baseline="position")
    )
    quiet_trainer(folder, max_steps=steps, max_epochs=-1, callbacks=[Keep()], **options).fit(module, datamodule=data)
    return saved


def test_rewards_are_those_of_the_dense_reward(
    make: Any, tiny_policy_folder: Path, references: list[str], tmp_path: Path
) -> None:
    spec = RewardSpec("one_sided_centred")
    (batch,) = rollouts_of(make(reward=spec), str(tiny_policy_folder), tmp_path)
    scores = DenseReward.from_folders(str(tiny_policy_folder), references[:1], spec).score(batch.tokens, batch.mask)
    torch.testing.assert_close(batch.reward, scores.reward, atol=2e-6, rtol=0)
    torch.testing.assert_close(batch.sft_logprob, scores.policy_logprob, atol=2e-6, rtol=0)
    torch.testing.assert_close(batch.reference_logprob, scores.reference_logprobs[0], atol=2e-6, rtol=0)
    assert float(batch.num_tokens) == int(batch.mask.sum())


@pytest.mark.parametrize(("accumulate", "plain", "passes"), [(1, True, 1), (2, True, 1), (1, False, 1), (2, False, 3)])
def test_the_reward_of_every_token_holds_that_of_the_sampled_ones(
    accumulate: int, plain: bool, passes: int, make: Any, tiny_policy_folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """In one pass of the frozen models; where only whole logits can be held, in one more for each micro-batch."""
    if not plain:
        monkeypatch.setattr("dpr_lightning.engine.scoring.plain_head", lambda model: None)
    counted: list[int] = []
    for name in ("score", "score_actions"):
        inner = getattr(DenseReward, name)

        def count(self: Any, tokens: Any, *options: Any, _inner: Any = inner, **named: Any) -> Any:
            counted.append(len(tokens))
            return _inner(self, tokens, *options, **named)

        monkeypatch.setattr(DenseReward, name, count)
    data = make(reward=RewardSpec("one_sided_centred"))
    saved = rollouts_of(
        data, str(tiny_policy_folder), tmp_path, estimator="all_actions", accumulate_grad_batches=accumulate
    )
    assert len(saved) == accumulate
    assert len(counted) == passes
    for batch in saved:
        position, acted = action_positions(batch.mask)
        index = batch.tokens.gather(1, position)[acted].unsqueeze(-1)
        scores = batch.actions.scores(acted.flatten().nonzero().squeeze(1))
        for every, sampled in (
            (scores.reward, batch.reward),
            (scores.sft_logprob, batch.sft_logprob),
            (scores.reference_logprob, batch.reference_logprob),
        ):
            torch.testing.assert_close(every.gather(-1, index).squeeze(-1), sampled[acted], atol=2e-6, rtol=0)
            assert bool((sampled[acted] != 0).any())


def test_kept_rollouts_are_refused_when_anything_behind_them_differs(
    make: Any, tiny_policy_folder: Path, references: list[str], prompts: str, tmp_path: Path
) -> None:
    saved, policy = str(tmp_path / "kept"), str(tiny_policy_folder)
    first = rollouts_of(make(precomputed=saved), policy, tmp_path, steps=2)
    again = rollouts_of(make(precomputed=saved), policy, tmp_path, steps=2)
    for ours, theirs in zip(first, again, strict=True):
        assert torch.equal(ours.tokens, theirs.tokens)
        assert torch.equal(ours.reward, theirs.reward)
    other = write_prompts(tmp_path / "other.jsonl", 7)
    for name, option in {
        "references": {"references": references[1:]},
        "reward": {"reward": RewardSpec("one_sided")},
        "sampling": {"sampling": SamplingOptions(4)},
        "prompts": {"prompts": other},
        "seed": {"seed": 1},
        "samples_per_prompt": {"samples_per_prompt": 3},
    }.items():
        with pytest.raises(InputError, match=rf"(?s)made from something else:\n  {name}: .* kept, .* now\n[^ ]"):
            rollouts_of(make(precomputed=saved, **option), policy, tmp_path)
    # The batch size changes no sample, so it is no reason to refuse.
    rollouts_of(make(precomputed=saved, sampling=SamplingOptions(5, batch_size=2)), policy, tmp_path)


def test_of_two_runs_one_makes_what_is_kept_and_the_other_waits(
    make: Any, tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, saved = str(tiny_policy_folder), tmp_path / "kept"
    first = rollouts_of(make(precomputed=str(tmp_path / "made")), policy, tmp_path, steps=1)
    monkeypatch.setattr(RewardDataModule, "_sft_rollouts", lambda _: pytest.fail("it was made already"))
    other = FileLock(tmp_path / ".kept.lock")
    other.acquire()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(rollouts_of, make(precomputed=str(saved)), policy, tmp_path, steps=1)
        with pytest.raises(TimeoutError):
            waiting.result(3)
        shutil.copytree(tmp_path / "made", saved)
        other.release()
        assert torch.equal(waiting.result(60)[0].tokens, first[0].tokens)


def test_kept_rollouts_know_the_base_of_an_adapter(make: Any, tiny_policy_folder: Path, tmp_path: Path) -> None:
    from shutil import copytree

    from dpr_lightning.rewards.cache import policy_hash

    base = Path(copytree(tiny_policy_folder, tmp_path / "base"))
    adapter = write_adapter(base, tmp_path / "adapter")
    before = policy_hash(adapter)
    assert policy_hash(adapter) == before
    (base / "config.json").write_text((base / "config.json").read_text() + "\n")
    assert policy_hash(adapter) != before


@pytest.mark.parametrize("error", ["disk", "safetensors"])
def test_a_full_disk_while_rollouts_are_kept(
    error: str, make: Any, tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(tensors: Any, path: Path) -> None:
        Path(path).write_bytes(b"half")
        if error == "disk":
            raise OSError(28, "No space left on device")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("dpr_lightning.rewards.cache.save_file", full)
    with pytest.raises(InputError, match=r"(?s)Could not write .*No space left on device.*free some space"):
        rollouts_of(make(precomputed=str(tmp_path / "kept" / "rollouts")), str(tiny_policy_folder), tmp_path)
    assert list((tmp_path / "kept").iterdir()) == []


def test_too_few_prompts_and_too_few_rows(make: Any, tiny_policy_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="6 prompts and a rollout takes 7"):
        rollouts_of(make(prompts_per_rollout=7), str(tiny_policy_folder), tmp_path)
    with pytest.raises(InputError, match=r"6 responses a rank, too few for 8.*accumulate_grad_batches"):
        rollouts_of(make(), str(tiny_policy_folder), tmp_path, accumulate_grad_batches=8)


def test_prompts_kept_for_evaluation_are_not_learnt_on(
    make: Any, prompts: str, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"share 6 prompts"):
        rollouts_of(make(evaluation=prompts), str(tiny_policy_folder), tmp_path)
    rollouts_of(make(evaluation=prompts, allow_overlap=True), str(tiny_policy_folder), tmp_path)


def test_excluded_prompts_are_not_learnt_on(
    make: Any, tiny_policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One file serves fine-tuning and reinforcement learning, without what the first held out."""
    lines = Path(make().prompts_path).read_text().splitlines()
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text("\n".join(lines[:2]) + "\n")
    data = make(exclude=str(held_out), held_out=str(held_out), max_prompt_length=20)
    rollouts_of(data, str(tiny_policy_folder), tmp_path)
    assert f"`data.exclude` ({held_out}) leaves out 2 of its {len(lines)} prompts." in caplog.text
    assert data.prompts is not None
    assert data.prompts.numbers == list(range(3, len(lines) + 1))
    with pytest.raises(InputError, match=r"`data\.exclude`.*has all prompts"):
        rollouts_of(make(exclude=make().prompts_path), str(tiny_policy_folder), tmp_path)
    # Rows of a benchmark, say, however long they are.
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "another question " * 20}) + "\n")
    rollouts_of(make(exclude=[str(other), str(held_out)], max_prompt_length=20), str(tiny_policy_folder), tmp_path)
    rollouts_of(make(exclude=str(other)), str(tiny_policy_folder), tmp_path)
    assert f"`data.exclude` ({other}) leaves out none of its prompts." in caplog.text


def test_greedy_rollouts_are_refused(make: Any) -> None:
    with pytest.raises(InputError, match="temperature"):
        make(sampling=SamplingOptions(5, temperature=0))


@pytest.mark.parametrize("which", ["policy", "reference"])
def test_tokenizers_that_differ_are_refused(which: str, make: Any, tiny_policy_folder: Path, tmp_path: Path) -> None:
    from dpr_lightning.policies import create_toy_policy
    from tests.tiny import ALPHABET

    other = str(create_toy_policy(tmp_path / "other", ["#" + ALPHABET], hidden_size=32, layers=2, heads=2))
    data = make(references=[other]) if which == "reference" else make()
    policy = other if which == "policy" else str(tiny_policy_folder)
    with pytest.raises(InputError, match=r"differ: token .* has id"):
        rollouts_of(data, policy, tmp_path)


def test_more_micro_batches_than_groups_are_refused(
    make: Any, tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DensePathReinforce, "whole_groups", True)
    with pytest.raises(InputError, match=r"3 groups of responses a rank, too few for 4.*accumulate_grad_batches"):
        rollouts_of(make(), str(tiny_policy_folder), tmp_path, accumulate_grad_batches=4)


def test_a_loader_hands_out_whole_groups() -> None:
    rollout = rollout_of(0, 0)._replace(group_size=1).take(torch.arange(4))._replace(group_size=2)
    parts = list(loader_of(Source()).micro_batches(rollout, last=True, whole_groups=True))
    assert [(part.prompt.tolist(), part.group_size) for part in parts] == [([0, 1], 2), ([2, 3], 2)]
    torn = list(loader_of(Source()).micro_batches(rollout, last=True))
    assert [(part.prompt.tolist(), part.group_size) for part in torn] == [([1, 3], 1), ([0, 2], 1)]


def test_samples_of_rollouts_are_refused_without_rollouts() -> None:
    trainer: Any = SimpleNamespace(datamodule=None)
    with pytest.raises(InputError, match=r"RolloutSamples .* SupervisedIRL learns from none"):
        RolloutSamples().setup(trainer, SupervisedIRL(PolicySpec(source="nowhere")), "fit")
