"""Batches that select rows of all their fields by the axes that these declare."""

from typing import Annotated, Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dpr_lightning.batch_axes import ActionTensor, Axes, RowTensor, TokenTensor, axes_of, row_tensors, select_rows
from dpr_lightning.types import RolloutBatch


class Scores:
    """Selects rows itself."""

    def __init__(self, log: list[tuple[list[int], int]]) -> None:
        self.log = log

    def take(self, rows: Tensor, actions: int) -> "Scores":
        return Scores([*self.log, (rows.tolist(), actions)])


class Batch(NamedTuple):
    """One field of each kind."""

    label: RowTensor
    tokens: TokenTensor
    value: ActionTensor
    count: Tensor
    score: Annotated[Tensor | None, Axes.ACTIONS] = None
    parts: Annotated[Any, Axes.ACTIONS] = None


BATCH = Batch(torch.arange(4), torch.arange(24).reshape(4, 6), torch.arange(12.0).reshape(4, 3), torch.tensor(7.0))


def test_rows_are_selected_in_every_field_that_has_them() -> None:
    rows = torch.tensor([2, 0])
    part = select_rows(BATCH._replace(parts=Scores([])), rows, tokens=4, actions=2)
    assert part.label.tolist() == [2, 0]
    assert part.tokens.tolist() == [[12, 13, 14, 15], [0, 1, 2, 3]]
    assert part.value.tolist() == [[6, 7], [0, 1]]
    assert float(part.count) == 7
    assert part.score is None
    assert part.parts.log == [([2, 0], 2)]
    assert list(row_tensors(part)) == ["label", "tokens", "value"]


def test_a_field_that_can_select_no_rows_is_named() -> None:
    with pytest.raises(TypeError, match="parts: str has no method `take`"):
        select_rows(BATCH._replace(parts="abcd"), torch.tensor([0]), 1, 1)


def test_every_field_of_a_rollout_with_rows_declares_them() -> None:
    assert set(RolloutBatch._fields) - set(axes_of(RolloutBatch)) == {"num_tokens", "group_size"}


def rollout(prompts: int, samples: int) -> RolloutBatch:
    """Responses of 1 to 5 tokens to prompts of two; row i has value i everywhere."""
    count = prompts * samples
    lengths = torch.arange(count) * 7 % 5 + 1
    column, row = torch.arange(7), torch.arange(count)
    mask = (column >= 2) & (column < 2 + lengths.unsqueeze(1))
    value = row.float().unsqueeze(1).expand(count, 5)
    tokens, prompt = row.unsqueeze(1).expand(count, 7), row // samples
    return RolloutBatch(tokens, mask, row > 2, prompt, value, value, value, value, value, mask.sum().float(),
                        group_size=samples)  # fmt: skip


def test_parts_know_whether_their_groups_are_whole() -> None:
    whole = rollout(3, 4)
    parts = list(whole.split([torch.tensor([4, 5, 6, 7]), torch.arange(8)], whole_groups=True))
    assert [part.group_size for part in parts] == [4, 4]
    torn = next(whole.split([torch.tensor([5, 1])]))
    assert (torn.group_size, torn.prompt.tolist(), torn.mask.sum().item()) == (1, [1, 0], 1 + 3)
    assert torn.reward.shape == (2, 3)
    assert torn.tokens.shape == (2, 5)
    taken = whole.take(torch.tensor([5]))
    assert (taken.group_size, taken.tokens.shape, taken.reward.shape) == (1, (1, 7), (1, 5))
