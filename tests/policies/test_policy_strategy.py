"""How a strategy holds a policy: the defaults, and what a strategy that cannot gather answers."""

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from dpr_lightning.errors import InputError
from dpr_lightning.policies import PolicyStrategy, as_policy_strategy


class InShards(SingleDeviceStrategy, PolicyStrategy):
    """Holds the gradients itself."""

    holds_gradients = True


def test_a_strategy_of_lightning_holds_the_policy_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = as_policy_strategy(SingleDeviceStrategy(torch.device("cpu")))
    assert (strategy.holds_gradients, strategy.shards_layers) == (False, False)
    with strategy.gather_for_inference(nn.Linear(1, 1)), strategy.gather_all(nn.Linear(1, 1)):
        pass
    monkeypatch.setattr("dpr_lightning.policies.policy_strategy.is_sharded", lambda _: True)
    with pytest.raises(InputError, match=r"SingleDeviceStrategy holds the policy in shards.*Zero3Strategy"):
        strategy.gather_for_inference(nn.Linear(1, 1))


def test_a_policy_strategy_is_used_itself() -> None:
    strategy = InShards(torch.device("cpu"))
    assert as_policy_strategy(strategy) is strategy
