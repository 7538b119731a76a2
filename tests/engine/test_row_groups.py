"""Rows of one forward pass: of similar length or of one prompt, whichever takes fewer tokens."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dpr_lightning.engine import acted_logprobs, micro_batches, parts_by_length, sampled_logits, sequence_logprobs
from dpr_lightning.engine.shared_prompts import Prompts
from dpr_lightning.functional import token_logprobs
from tests.engine.test_shared_prompts import answers, model_of

BUDGET = 4 * 17
"""Tokens of the four answers to one prompt."""


def groups(tokens: Tensor, parts: list[Tensor]) -> list[set[tuple[int, ...]]]:
    """First tokens of the prompts of each part."""
    return [{tuple(tokens[row, :4].tolist()) for row in rows} for rows in parts]


def every_answer() -> tuple[Tensor, Tensor]:
    """Twelve answers, none of them empty."""
    tokens, mask = answers(shuffled=False)
    mask[5, 6:8] = True
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    return tokens[order], mask[order]


def count(model: nn.Module, rows: Tensor, tokens: Tensor, mask: Tensor) -> int:
    longest = int((mask[rows] * torch.arange(1, mask.shape[1] + 1)).amax())
    with FlopCounterMode(display=False) as counter:
        acted_logprobs(model, tokens[rows, :longest], mask[rows, :longest])
    return int(counter.get_total_flops())


def test_answers_to_one_prompt_are_scored_together() -> None:
    tokens, mask = every_answer()
    model = model_of("eager")
    whole = acted_logprobs(model, tokens, mask).float()  # and a model that is new is looked at
    with FlopCounterMode(display=False) as counter:
        result = sequence_logprobs(model, tokens, mask, token_budget=BUDGET)
    torch.testing.assert_close(result, whole, atol=1e-6, rtol=1e-6)
    prompt = torch.unique(tokens[:, :4], dim=0, return_inverse=True)[1]
    each = [count(model, (prompt == index).nonzero().squeeze(1), tokens, mask) for index in range(3)]
    assert counter.get_total_flops() == sum(each)
    by_length = sum(count(model, part[0], tokens, mask) for part in parts_by_length(tokens, mask, BUDGET))
    assert counter.get_total_flops() < 0.95 * by_length


def test_micro_batches_hold_the_answers_to_one_prompt() -> None:
    tokens, mask = every_answer()
    parts = micro_batches(tokens, mask, 3, shared=True)
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    assert [len(names) for names in groups(tokens, parts)] == [1, 1, 1]
    assert max(len(names) for names in groups(tokens, micro_batches(tokens, mask, 3))) > 1
    # As many as asked for, whatever the groups are.
    assert [len(rows) for rows in micro_batches(tokens, mask, 5, shared=True)] == [3, 3, 2, 2, 2]


def test_rows_of_like_length_stay_together_where_prompts_are_short() -> None:
    """Two answers of very different length to each short prompt: padding would cost more than prompts."""
    tokens, mask = torch.zeros(8, 40, dtype=torch.long), torch.zeros(8, 40, dtype=torch.bool)
    for row in range(8):
        tokens[row, :3] = torch.tensor([1, 2, row // 2])
        mask[row, 3 : 40 if row % 2 else 6] = True
    for shared in (False, True):
        parts = list(parts_by_length(tokens, mask, 4 * 40, shared=shared))
        assert [sorted(part[0].tolist()) for part in parts] == [[0, 2, 4, 6], [1, 3, 5, 7]]
        assert [part[1].shape for part in parts] == [(4, 6), (4, 40)]


def test_a_part_keeps_to_its_budget_however_lengths_are_ordered() -> None:
    tokens, mask = answers()
    for budget in (1, 16, 40, 68, 1000):
        parts = list(parts_by_length(tokens, mask, budget, shared=True))
        assert sorted(int(row) for part in parts for row in part[0]) == list(range(12))
        for rows, part, acted in parts:
            assert len(rows) == 1 or part.numel() <= budget
            assert torch.equal(acted.sum(1), mask[rows].sum(1))


def test_a_rollout_of_many_lengths_is_read_in_fewer_tokens() -> None:
    """64 prompts of 128 to 256 tokens with 8 answers of 64 to 256 each: what docs/performance.md says of it."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randint(128, 257, (64,), generator=generator).repeat_interleave(8).unsqueeze(1)
    length = before + torch.randint(64, 257, (512, 1), generator=generator)
    column = torch.arange(512)
    tokens = torch.where(column < before, torch.arange(64).repeat_interleave(8).unsqueeze(1), 0)
    mask = (column >= before) & (column < length)
    prompts = Prompts.of(tokens, mask)

    def read(shared: bool) -> int:
        return sum(prompts.take(part[0]).to_read() for part in parts_by_length(tokens, mask, 16384, shared=shared))

    assert read(False) == 185_616
    assert read(True) == 145_510


def test_groups_stay_whole_and_in_order() -> None:
    tokens, mask = answers(shuffled=False)
    for number in (1, 2, 3):
        parts = micro_batches(tokens, mask, number, groups=4)
        rows = torch.cat(parts).view(-1, 4)
        assert len(parts) == number
        assert torch.equal(rows, rows[:, :1] + torch.arange(4))
        assert sorted(rows[:, 0].tolist()) == [0, 4, 8]
    longest = [int(mask[part].any(0).nonzero().max()) for part in micro_batches(tokens, mask, 3, groups=4)]
    assert longest == sorted(longest)


def test_a_loss_within_groups_has_the_gradient_of_the_whole_batch() -> None:
    """Σ of squared differences between neighbours in a group: separated rows would lose some."""
    tokens, mask = answers(shuffled=False)
    model = model_of("eager")

    def gradient(parts: list[Tensor]) -> Tensor:
        model.zero_grad()
        for rows in parts:
            scored = sampled_logits(model, tokens[rows], mask[rows])
            logprob = token_logprobs(scored.logits, scored.tokens).masked_fill(~scored.mask, 0.0)
            score = logprob.sum(1)
            (score.view(-1, 4).diff(dim=1) ** 2).sum().backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])

    whole = gradient([torch.arange(12)])
    parts = gradient(micro_batches(tokens, mask, 3, groups=4))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    torn = gradient(micro_batches(tokens, mask, 3))
    assert (torn - whole).norm() > 0.1 * whole.norm()
