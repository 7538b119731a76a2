"""The gradient of one training step against full enumeration of a tiny language, in float64."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dpr_lightning.engine import action_logits
from dpr_lightning.modules import CreditSpec, DensePathReinforce, KLSpec
from dpr_lightning.policies import PolicySpec
from dpr_lightning.types import ActionScores, RolloutBatch
from tests.tabular import TinyLanguage

LANGUAGE = TinyLanguage(vocabulary=3, horizon=3)
BETA, BETA_REFERENCE = 0.5, 0.25


class TabularPolicy(nn.Module):
    """A causal language model whose hidden state is the prefix itself, one-hot: its head is the table of logits."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="eager")
        self.head = nn.Linear(table.shape[0], table.shape[1], bias=False, dtype=torch.float64)
        self.head.weight = nn.Parameter(table.T.clone())

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        states = LANGUAGE.prefixes[: LANGUAGE.states]
        hidden = torch.zeros(*input_ids.shape, len(states), dtype=torch.float64)
        for row, tokens in enumerate(input_ids.tolist()):
            for index in range(len(tokens)):
                prefix = tuple(tokens[1 : index + 1])
                hidden[row, index, states.index(prefix) if prefix in states else 0] = 1.0
        return SimpleNamespace(logits=self.head(hidden))


class Tabled:
    """Scores of every token [B, T, V] that are simply known."""

    def __init__(self, known: ActionScores) -> None:
        self.known = known

    def scores(self, place: Tensor) -> ActionScores:
        return ActionScores(*(part.flatten(0, 1)[place] for part in self.known))

    def take(self, rows: Tensor, actions: int) -> "Tabled":
        return Tabled(ActionScores(*(part[rows, :actions] for part in self.known)))


class Trainer:
    """As much of a trainer as a training step asks for."""

    accumulate_grad_batches = 1
    world_size = 1
    global_step = 1
    fit_loop = SimpleNamespace(_should_accumulate=lambda: False)


def every_path(sft: Tensor, reference: Tensor) -> RolloutBatch:
    """What a uniform policy draws, without chance: every response as often as it is probable."""
    length = LANGUAGE.mask.sum(1)
    copies = LANGUAGE.vocabulary ** (LANGUAGE.horizon - length)
    rows = torch.arange(len(length)).repeat_interleave(copies)
    mask, tokens = LANGUAGE.mask[rows], LANGUAGE.tokens[rows]
    state, none = LANGUAGE.state[rows], torch.zeros(len(rows), dtype=torch.int64)
    by_sft, by_reference = sft.log_softmax(-1)[state], reference.log_softmax(-1)[state]
    chosen = [whole.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) for whole in (by_sft, by_reference)]
    uniform = torch.full(mask.shape, -torch.tensor(3.0, dtype=torch.float64).log().item(), dtype=torch.float64)
    start = torch.zeros(len(rows), 1, dtype=torch.int64)
    return RolloutBatch(
        tokens=torch.cat([start, tokens], 1),
        mask=torch.cat([start.bool(), mask], 1),
        terminated=LANGUAGE.terminated[rows],
        prompt=none,
        behaviour_logprob=uniform,
        sft_logprob=chosen[0],
        reference_logprob=chosen[1],
        reward=chosen[0] - chosen[1],
        advantage=torch.zeros(mask.shape, dtype=torch.float64),
        num_tokens=torch.tensor(float(len(rows))),
        actions=Tabled(ActionScores(by_sft - by_reference, by_sft, by_reference)),
    )


def test_the_tabular_policy_is_what_the_forward_pass_reads() -> None:
    table = LANGUAGE.random_logits(3)
    start = torch.zeros(len(LANGUAGE.tokens), 1, dtype=torch.int64)
    tokens, mask = torch.cat([start, LANGUAGE.tokens], 1), torch.cat([start.bool(), LANGUAGE.mask], 1)
    scored = action_logits(TabularPolicy(table), tokens, mask)
    torch.testing.assert_close(scored.logits[scored.mask], LANGUAGE.logits(table)[LANGUAGE.mask])


@pytest.mark.parametrize("estimator", ["reinforce", "all_actions"])
@pytest.mark.parametrize("discount", [0.0, 0.7, 1.0])
def test_gradient_of_a_step_is_that_of_the_enumerated_objective(estimator: Any, discount: float) -> None:
    sft, reference = LANGUAGE.random_logits(0), LANGUAGE.random_logits(1)
    table = torch.zeros(LANGUAGE.states, LANGUAGE.vocabulary, dtype=torch.float64)
    module = DensePathReinforce(
        PolicySpec(source="nowhere"),
        estimator=estimator,
        credit=CreditSpec(discount=discount, baseline="none"),
        kl=KLSpec(coefficient=BETA, reference_coefficient=BETA_REFERENCE),
        improbable_floor=1e-6,
        check_start=False,
    )
    module.policy = TabularPolicy(table)
    trainer = Trainer()
    module.trainer = trainer  # type: ignore[assignment]
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    batch = module.credit(every_path(sft, reference))
    module.training_step(batch, 0).backward()

    policy, by_sft, by_reference = (logits.log_softmax(-1) for logits in (table, sft, reference))
    token_reward = by_sft - by_reference - BETA * (policy - by_sft) - BETA_REFERENCE * (policy - by_reference)
    expected = LANGUAGE.reward_to_go_gradient(table, token_reward, discount)
    assert expected.abs().max() > 0.1
    gradient = module.policy.head.weight.grad.T
    torch.testing.assert_close(-gradient, expected, atol=1e-12, rtol=0)
    if discount == 1.0:
        leaf = table.clone().requires_grad_()
        along = (by_sft - by_reference)[LANGUAGE.state].gather(-1, LANGUAGE.tokens.unsqueeze(-1)).squeeze(-1)
        logprob = LANGUAGE.logprob(leaf)
        penalty = BETA * (logprob - LANGUAGE.logprob(sft)) + BETA_REFERENCE * (logprob - LANGUAGE.logprob(reference))
        LANGUAGE.objective(leaf, along - penalty).backward()
        torch.testing.assert_close(-gradient, leaf.grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("floor", [1e-6, 0.5])
def test_a_push_on_an_improbable_token_is_bounded(floor: float) -> None:
    """Below the floor the gradient of −A·log π shrinks with π; above it nothing changes."""
    sft = LANGUAGE.random_logits(0)
    table = torch.zeros(LANGUAGE.states, LANGUAGE.vocabulary, dtype=torch.float64)
    module = DensePathReinforce(PolicySpec(source="nowhere"), "reinforce", improbable_floor=floor, check_start=False)
    module.policy = TabularPolicy(table)
    trainer = Trainer()
    module.trainer = trainer  # type: ignore[assignment]
    module.log = module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    batch = every_path(sft, sft)._replace(advantage=-torch.ones(27, 3, dtype=torch.float64))
    loss = module.training_step(batch, 0)
    lengths = float(LANGUAGE.path_probability(table) @ LANGUAGE.mask.sum(1).double())
    # π = 1/3 everywhere: above 1e-6, and 2/3 of the floor 1/2
    assert float(loss.detach()) == pytest.approx(lengths * min(1.0, (1 / 3) / floor), rel=1e-6)
