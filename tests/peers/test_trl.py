"""The same loss as TRL's on the same batch: DPO (and SPIN), IPO, and sentence-level REINFORCE beside RLOO."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from dpr_lightning.data import PreferenceDataModule
from dpr_lightning.data.response_pairs import PairedDataset
from dpr_lightning.engine import action_logits, sequence_logprobs
from dpr_lightning.functional import SelfPlayLoss, clipped_surrogate_loss, token_logprobs
from dpr_lightning.modules import CreditSpec, SelfPlay, estimate_advantages
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.types import RolloutBatch, SelfPlayBatch
from tests.workspace import write_rows

trl = pytest.importorskip("trl")
PROMPTS = ["1 + 1 =", "20 + 3 =", "4 + 44 =", "5 + 5 ="]


@pytest.fixture
def policies(tiny_policy_folder: Path) -> tuple[nn.Module, nn.Module, Any]:
    """A policy, an opponent a little away from it, and their tokenizer."""
    policy, tokenizer = build_policy(PolicySpec(source=str(tiny_policy_folder)))
    opponent = copy.deepcopy(policy)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in opponent.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return policy, opponent, tokenizer


def quiet(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 4,
    }


def logprobs(policy: nn.Module, tokens: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scored = action_logits(policy, tokens, mask)
    return token_logprobs(scored.logits, scored.tokens), scored.mask


def gradient(policy: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    policy.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return torch.cat([weight.grad.flatten() for weight in policy.parameters() if weight.grad is not None])


@pytest.mark.parametrize(
    ("loss", "theirs_by", "scale"),
    [
        ("spin", "sigmoid", 0.1),
        ("spin", "sigmoid", 1.0),
        ("dpo", "sigmoid", 0.1),
        ("ipo", "ipo", 0.1),
        ("ipo", "ipo", 1.0),
    ],
)
def test_the_losses_of_pairs(
    loss: SelfPlayLoss, theirs_by: str, scale: float, policies: tuple[nn.Module, nn.Module, Any], tmp_path: Path
) -> None:
    policy, opponent, tokenizer = policies
    rows = [
        {"prompt": prompt, "chosen": f" Answer: {index}", "rejected": " Answer: " + "9" * (1 + index)}
        for index, prompt in enumerate(PROMPTS)
    ]
    trainer = trl.DPOTrainer(
        policy,
        opponent,
        trl.DPOConfig(**quiet(tmp_path), beta=scale, loss_type=[theirs_by]),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    theirs = trainer.compute_loss(trainer.model, dict(batch))

    tokens, mask = batch["input_ids"], batch["completion_mask"].bool()
    module = SelfPlay(PolicySpec(source="nowhere"), loss=loss, scale=scale)
    module.policy = policy
    pairs = SelfPlayBatch(tokens, mask, sequence_logprobs(opponent, tokens, mask).sum(1), torch.tensor(4.0))
    ours = module.pair_loss(*module.pair_scores(pairs)).mean()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient(policy, ours), gradient(policy, theirs), atol=1e-5, rtol=1e-5)


def test_pairs_are_read_as_trl_reads_them(policies: tuple[nn.Module, nn.Module, Any], tmp_path: Path) -> None:
    policy, opponent, tokenizer = policies
    rows = [
        {"prompt": prompt, "chosen": f" Answer: {index}", "rejected": " Answer: " + "9" * (1 + index)}
        for index, prompt in enumerate(PROMPTS)
    ]
    trainer = trl.DPOTrainer(
        policy,
        opponent,
        trl.DPOConfig(**quiet(tmp_path)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    theirs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    present = theirs["attention_mask"].bool()
    learnt = {tuple(row[mask].tolist()) for row, mask in zip(theirs["input_ids"], present, strict=True)}
    (tmp_path / "tokenizer").mkdir()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = write_rows(tmp_path / "pairs.jsonl", rows)
    data = PreferenceDataModule(path, validation=None, cache_dir=None, tokenizer=str(tmp_path / "tokenizer"))
    data.setup("fit")
    assert isinstance(data.train_data, PairedDataset)
    ours = {tuple(part.example(n).tokens) for part in (data.train_data, data.train_data.rejected) for n in range(4)}
    assert ours == learnt


def test_sentence_level_credit_is_rloo(policies: tuple[nn.Module, nn.Module, Any], tmp_path: Path) -> None:
    policy, _, tokenizer = policies

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(map(ord, text)) % 11) for text in completions]

    trainer = trl.RLOOTrainer(
        policy,
        reward,
        trl.RLOOConfig(**quiet(tmp_path), num_generations=2, max_completion_length=6, beta=0.0),
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer,
    )
    # Before they shuffle it, so that the answers to one prompt are neighbours.
    batch = trainer._generate_and_score_completions(next(iter(trainer.get_train_dataloader())))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    their_gradient = gradient(policy, theirs)

    completion_mask = batch["completion_mask"].bool()
    # Their prompts are padded on the left, ours on the right.
    prompts = [row[present.bool()] for row, present in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
    answers = [row[present] for row, present in zip(batch["completion_ids"], completion_mask, strict=True)]
    rows = [torch.cat(parts) for parts in zip(prompts, answers, strict=True)]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    column = torch.arange(tokens.shape[1])
    starts, ends = (torch.tensor([len(row) for row in present]).unsqueeze(1) for present in (prompts, rows))
    mask = (column >= starts) & (column < ends)
    logprob, acted = logprobs(policy, tokens, mask)

    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    last = acted.long().sum(1, keepdim=True) - 1
    outcome = torch.zeros_like(logprob).scatter(1, last, torch.tensor(reward(texts)).unsqueeze(1))
    none, current = torch.zeros_like(logprob), logprob.detach()
    rollout = RolloutBatch(
        tokens, mask, mask[:, 0], mask[:, 0], current, current, none, outcome, none, acted.sum().float()
    )
    credit = CreditSpec(level="sentence", baseline="leave_one_out")
    advantage = estimate_advantages(rollout, acted, credit, kl_coefficient=0.0, group_size=2)
    torch.testing.assert_close(advantage[:, 0], batch["advantages"], atol=1e-5, rtol=0)
    # They average over responses, we over tokens.
    loss, _ = clipped_surrogate_loss(logprob, current, advantage, acted, float(len(rows)), 0.2)
    assert their_gradient.norm() > 1e-3
    torch.testing.assert_close(gradient(policy, loss), their_gradient, atol=1e-5, rtol=1e-4)
