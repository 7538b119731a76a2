"""Rollouts drawn while the policy learns: of which weights, and what a run that goes on learns from."""

import threading
import time
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from dpr_lightning.data import RewardDataModule
from dpr_lightning.data.rollout_schedule import RolloutSchedule
from dpr_lightning.errors import InputError
from dpr_lightning.modules import CreditSpec, DensePathReinforce
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy
from dpr_lightning.rollouts import RolloutPrefetcher, SamplingOptions, prefetch_device, sample
from dpr_lightning.rollouts.sampler import GivenUp
from dpr_lightning.types import RolloutBatch
from tests.training import quiet_trainer, write_adapter, write_prompts, write_weaker_policy


class Keep(lightning.Callback):
    """The rollouts that were learnt from, and the weights at the end."""

    def __init__(self) -> None:
        self.batches: list[RolloutBatch] = []
        self.ratio: list[float] = []
        self.weights: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.ratio.append(float(trainer.callback_metrics["train/ratio"]))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights = [weight.detach().clone() for weight in pl_module.policy.parameters()]


@pytest.fixture(scope="module")
def folders(tiny_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("ahead")
    return {
        "prompts": write_prompts(root / "prompts.jsonl", 6),
        "policy": str(tiny_policy_folder),
        "reference": write_weaker_policy(tiny_policy_folder, root / "reference"),
    }


def data_of(folders: dict[str, str], **options: Any) -> RewardDataModule:
    settings: dict[str, Any] = {
        "sampling": SamplingOptions(5), "samples_per_prompt": 2, "prompts_per_rollout": 3, "draw_ahead": "same"
    }  # fmt: skip
    defaults = {"sft": folders["policy"], "references": [folders["reference"]]}
    return RewardDataModule(folders["prompts"], **(defaults | settings | options))


def run(
    folders: dict[str, str],
    root: Path,
    steps: int = 4,
    rate: float = 0.5,
    ckpt_path: str | None = None,
    max_epochs: int = -1,
    every: int = 2,
    **options: Any,
) -> Keep:
    saved = Keep()
    optimizer: Any = lambda weights: torch.optim.SGD(weights, lr=rate)  # noqa: E731
    policy = options.pop("policy", PolicySpec(source=folders["policy"]))
    module = DensePathReinforce(policy, "reinforce", CreditSpec(discount=1.0, baseline="position"), optimizer=optimizer)
    saves = lightning.pytorch.callbacks.ModelCheckpoint(root / "saved", every_n_train_steps=every, save_top_k=-1)
    settings = {"enable_checkpointing": True, "max_steps": steps, "max_epochs": max_epochs, "callbacks": [saved, saves]}
    quiet_trainer(root, **settings).fit(module, datamodule=data_of(folders, **options), ckpt_path=ckpt_path)
    return saved


def same(one: RolloutBatch, other: RolloutBatch) -> bool:
    """The same answers, of weights that are the same but for where they lie."""
    near = torch.allclose(one.behaviour_logprob, other.behaviour_logprob, atol=1e-5, rtol=0)
    return torch.equal(one.tokens, other.tokens) and near


def test_a_rollout_is_of_the_policy_at_the_start_of_the_step_before(folders: dict[str, str], tmp_path: Path) -> None:
    """The first two rollouts are of π_SFT; the third, behind a checkpoint, and the fourth of what it is then."""
    ahead = run(folders, tmp_path / "ahead")
    still = run(folders, tmp_path / "still", steps=2, rate=0.0, draw_ahead=None)
    fresh = run(folders, tmp_path / "fresh", draw_ahead=None)
    (saved,) = (tmp_path / "ahead" / "saved").glob("*step=2.ckpt")
    later = run(folders, tmp_path / "later", rate=0.0, draw_ahead=None, ckpt_path=str(saved))
    expected = [*still.batches, *later.batches]
    assert all(same(one, other) for one, other in zip(ahead.batches, expected, strict=True))
    assert not same(expected[1], fresh.batches[1])
    assert [ratio == pytest.approx(1, abs=1e-5) for ratio in fresh.ratio] == [True] * 4
    assert [ratio == pytest.approx(1, abs=1e-5) for ratio in ahead.ratio] == [True, False, True, False]


def test_a_run_that_goes_on_learns_from_the_same(folders: dict[str, str], tmp_path: Path) -> None:
    whole = run(folders, tmp_path / "whole")
    (saved,) = (tmp_path / "whole" / "saved").glob("*step=2.ckpt")
    rest = run(folders, tmp_path / "rest", ckpt_path=str(saved))
    assert all(same(one, other) for one, other in zip(whole.batches[2:], rest.batches, strict=True))
    for one, other in zip(whole.weights, rest.weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_an_adapter_is_merged_into_the_copy_as_it_is_then(folders: dict[str, str], tmp_path: Path) -> None:
    """The fourth rollout is of an adapter that has taken two steps."""
    adapter = write_adapter(folders["policy"], tmp_path / "adapter")
    spec = PolicySpec(source=folders["policy"], checkpoint=adapter, lora=LoraSpec(rank=2, alpha=4.0))
    ahead = run(folders, tmp_path / "ahead", rate=50.0, policy=spec, sft=adapter)
    (saved,) = (tmp_path / "ahead" / "saved").glob("*step=2.ckpt")
    options: Any = {"rate": 0.0, "policy": spec, "sft": adapter, "draw_ahead": None}
    later = run(folders, tmp_path / "later", ckpt_path=str(saved), **options)
    start = run(folders, tmp_path / "start", **options)
    assert same(ahead.batches[3], later.batches[1])
    assert same(ahead.batches[1], start.batches[1])
    assert not same(later.batches[1], start.batches[3])


def test_a_rollout_that_serves_several_steps(folders: dict[str, str], tmp_path: Path) -> None:
    """The second is drawn while the first is learnt from twice."""
    options: Any = {"refresh_every": 2}
    ahead = run(folders, tmp_path / "ahead", every=100, **options)
    still = run(folders, tmp_path / "still", rate=0.0, every=100, **(options | {"draw_ahead": None}))
    fresh = run(folders, tmp_path / "fresh", every=100, **(options | {"draw_ahead": None}))
    assert same(ahead.batches[2], still.batches[2])
    assert not same(ahead.batches[2], fresh.batches[2])


def test_what_nobody_wants_is_given_up(folders: dict[str, str], tmp_path: Path) -> None:
    """Within a token, and not when all answers are written."""
    model, _ = build_policy(PolicySpec(source=folders["policy"]))
    started, ahead = threading.Event(), RolloutPrefetcher(folders["policy"])
    tokens: list[int] = []

    def write(copy: Any, unwanted: Any) -> Any:
        def requested() -> bool:
            started.set()
            tokens.append(1)
            time.sleep(0.01)
            return bool(unwanted())

        return sample(copy, [[5]], SamplingOptions(100_000), stop_tokens=[], pad_token=0, unwanted=requested)

    ahead.begin("it", model, write)
    assert started.wait(30)
    ahead.forget()
    assert len(tokens) < 10_000
    assert ahead.take("it") is None
    ahead.close()


def test_a_checkpoint_ends_what_is_being_written(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It samples until it is told to stop, which a checkpoint does after every step here."""
    given_up: list[bool] = []

    def until_unwanted(*arguments: Any, unwanted: Any, **options: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            return sample(*arguments, unwanted=unwanted, **options)
        ends = time.monotonic() + 30
        while time.monotonic() < ends and not unwanted():
            time.sleep(0.01)
        given_up.append(unwanted())
        raise GivenUp

    monkeypatch.setattr("dpr_lightning.data.rollout_schedule.sample", until_unwanted)
    run(folders, tmp_path, steps=3, every=1)
    assert given_up == [True, True]


@pytest.mark.parametrize("end", [{"steps": 2}, {"steps": -1, "max_epochs": 1}])
def test_it_is_written_beside_the_step_and_never_in_vain(
    end: dict[str, int], folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []
    sampled = RolloutSchedule._sampled

    def watched(self: Any, *arguments: Any) -> Any:
        threads.append(threading.current_thread().name.split("_")[0])
        return sampled(self, *arguments)

    monkeypatch.setattr(RolloutSchedule, "_sampled", watched)
    run(folders, tmp_path, **end)
    assert sorted(threads) == ["MainThread", "draws-ahead"]
    assert not any(thread.name.startswith("draws-ahead") for thread in threading.enumerate())


def test_what_goes_wrong_there_ends_the_run(
    folders: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = RolloutSchedule._sampled

    def breaks(self: Any, *arguments: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            raise torch.OutOfMemoryError("out of memory")
        return sampled(self, *arguments)

    monkeypatch.setattr(RolloutSchedule, "_sampled", breaks)
    with pytest.raises(torch.OutOfMemoryError):
        run(folders, tmp_path)
    assert not any(thread.name.startswith("draws-ahead") for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precomputed": "kept"}, "`draw_ahead` lets this package's sampler"),
        ({"draw_ahead": "gpu"}, "`same` or a device such as cuda:1; found 'gpu'"),
        ({"draw_ahead": "cuda:99"}, "'cuda:99', and this process sees"),
    ],
)
def test_what_cannot_be_is_refused(options: Any, says: str, folders: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        run(folders, tmp_path, **options)


def test_several_ranks_draw_where_their_policies_lie() -> None:
    assert prefetch_device("same", 2) is None
    with pytest.raises(InputError, match="2 ranks would all draw there"):
        prefetch_device("cpu", 2)
