"""Half-precision weights with float32 copies, against float32 weights, and after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dpr_lightning.data import DemonstrationDataModule
from dpr_lightning.engine import master_weights
from dpr_lightning.engine.master_weights import MasterWeights
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import PolicySpec
from tests.training import quiet_trainer, write_demonstrations


def weights(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, generator=generator).bfloat16().to(dtype).requires_grad_() for _ in range(3)]


def take_steps(optimizer: torch.optim.Optimizer, tensors: list[Tensor], first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for index, weight in enumerate(tensors):
            gradient = torch.randn(weight.shape, generator=generator).bfloat16()
            weight.grad = gradient.to(weight.dtype) if (index + step) % 3 else None
        optimizer.step()


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1)


def test_a_change_of_a_millionth_survives() -> None:
    plain = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    saved = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    optimizers = [
        torch.optim.SGD([plain], lr=1e-6),
        MasterWeights([saved], lambda tensors: torch.optim.SGD(tensors, lr=1e-6)),
    ]
    for _ in range(10_000):
        plain.grad, saved.grad = torch.ones_like(plain), torch.ones_like(saved)
        for optimizer in optimizers:
            optimizer.step()
    assert (plain == 1).all()
    torch.testing.assert_close(saved, torch.full_like(saved, 0.99))


def test_the_copies_are_stepped_as_float32_weights_would_be() -> None:
    exact, tensors = weights(torch.float32), weights(torch.bfloat16)
    take_steps(adam(exact), exact, 0, 20)
    take_steps(MasterWeights(tensors, adam), tensors, 0, 20)
    assert all(torch.equal(ours, theirs.bfloat16()) for ours, theirs in zip(tensors, exact, strict=True))
    assert not any(torch.equal(ours, before) for ours, before in zip(tensors, weights(torch.bfloat16), strict=True))


def test_weights_in_float32_are_stepped_as_they_are() -> None:
    exact, mixed = weights(torch.float32), weights(torch.float32)
    mixed[1] = weights(torch.bfloat16)[1].detach().requires_grad_()
    take_steps(adam(exact), exact, 0, 9)
    take_steps(MasterWeights(mixed, adam), mixed, 0, 9)
    assert torch.equal(mixed[0], exact[0])
    assert torch.equal(mixed[1], exact[1].bfloat16())


class OnTheirSum(torch.optim.Optimizer):
    """An optimizer whose step of a weight depends on the other ones."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        tensors = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        total = torch.stack([weight.grad.sum() for weight in tensors]).sum()
        for weight in tensors:
            weight -= 0.1 * total


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "build",
    [
        adam,
        lambda tensors: torch.optim.AdamW(tensors, lr=1e-3, fused=True),
        lambda tensors: torch.optim.SGD(tensors, lr=0.1, momentum=0.9),
        lambda tensors: torch.optim.Adagrad(tensors),
        lambda tensors: torch.optim.RMSprop(tensors),
        lambda tensors: torch.optim.Adafactor(tensors),
        OnTheirSum,
    ],
)
def test_parts_change_no_step(build: Any, mixed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Optimizers of independent steps go weight by weight, with as few gradients in float32."""
    whole, parted = weights(torch.bfloat16), weights(torch.bfloat16)
    if mixed:
        whole[1], parted[1] = (weights(torch.float32)[1].detach().requires_grad_() for _ in range(2))
    take_steps(MasterWeights(whole, build), whole, 0, 9)
    monkeypatch.setattr(master_weights, "_AT_ONCE", 20)
    optimizer = MasterWeights(parted, build)
    at_once = []

    def count(*_: Any) -> None:
        at_once.append(sum(copy.grad is not None for copy in optimizer._copies.values()))

    optimizer.inner.register_step_pre_hook(count)
    take_steps(optimizer, parted, 0, 9)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(parted, whole, strict=True))
    gradients = sum(weight.grad is not None for weight in parted)
    assert gradients == 2  # of the last step: a user may still look at them
    if isinstance(optimizer.inner, OnTheirSum):
        assert optimizer.inner.steps == 9
    else:
        assert max(at_once) == 1


def test_an_error_within_loses_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = weights(torch.bfloat16)
    tensors[0] = weights(torch.float32)[0].detach().requires_grad_()
    for weight in tensors:
        weight.grad = torch.ones_like(weight)
    monkeypatch.setattr(master_weights, "_AT_ONCE", 1)
    optimizer, calls = MasterWeights(tensors, adam), []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")

    optimizer.inner.register_step_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    assert all(weight.grad is not None for weight in tensors)
    assert all(copy.grad is None for copy in optimizer._copies.values())


def test_a_step_without_gradients_changes_nothing() -> None:
    tensors = weights(torch.bfloat16)
    MasterWeights(tensors, adam).step()
    assert all(torch.equal(ours, before) for ours, before in zip(tensors, weights(torch.bfloat16), strict=True))


def test_it_goes_on_from_its_state() -> None:
    once, twice = weights(torch.bfloat16), weights(torch.bfloat16)
    take_steps(MasterWeights(once, adam), once, 0, 12)
    first = MasterWeights(twice, adam)
    take_steps(first, twice, 0, 5)
    again = MasterWeights(twice, adam)
    again.load_state_dict(first.state_dict())
    take_steps(again, twice, 5, 12)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(once, twice, strict=True))


def test_a_schedule_reaches_the_copies() -> None:
    tensors = weights(torch.bfloat16)
    optimizer = MasterWeights(tensors, lambda parameters: torch.optim.SGD(parameters, lr=1.0))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    take_steps(optimizer, tensors, 0, 1)
    schedule.step()
    after = [weight.detach().clone() for weight in tensors]
    take_steps(optimizer, tensors, 1, 3)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(tensors, after, strict=True))


@pytest.mark.parametrize("master_weights", [True, False])
def test_a_policy_in_bfloat16_learns_at_a_small_rate(
    master_weights: bool, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    spec = PolicySpec(source=str(tiny_policy_folder), dtype="bfloat16", master_weights=master_weights)
    module = SupervisedIRL(spec, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0))
    data = DemonstrationDataModule(
        write_demonstrations(tmp_path / "rows.jsonl"), batch_size=4, cache_dir=str(tmp_path / "cache"), validation=None
    )
    trainer = quiet_trainer(tmp_path, max_steps=12, gradient_clip_val=1.0)
    trainer.fit(module, data)
    before = SupervisedIRL(spec).build()[0].state_dict()
    after = module.policy.state_dict()
    # Weights near 0 have room for small changes even in bfloat16; those of the norms, which are 1, do not.
    norm = "model.norm.weight"
    assert torch.equal(after[norm], before[norm])
    copies = trainer.optimizers[0].state_dict().get("master_weights")
    assert (copies is not None) == master_weights
    if copies is not None:
        moved = [copy for copy in copies if copy.shape == after[norm].shape and 0 < (copy - 1).abs().max() < 1e-4]
        assert moved
