"""How much a step computes, counted: no noise, so a forward pass too many is seen at once."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from benchmarks.scoreboard.material import write_material
from benchmarks.scoreboard.workloads import Shape, Workload
from dpr_lightning.data import DemonstrationDataModule, RewardDataModule
from dpr_lightning.experiments.flops import FlopSum
from dpr_lightning.modules import CreditSpec, DensePathReinforce, SupervisedIRL
from dpr_lightning.policies import PolicySpec, build_policy
from dpr_lightning.rewards import RewardSpec
from dpr_lightning.rollouts import SamplingOptions, sample
from tests.training import quiet_trainer

# Wide for its length, as real models are, so that attention to padding or to the future is a small part.
SHAPE = Shape(hidden_size=256, intermediate_size=512, layers=2, heads=4, kv_heads=2, vocabulary=600)
SFT = Workload("sft", "", rows=8, prompt=24, completion=40)
DPR = Workload("dpr", "", rows=16, prompt=16, completion=24, samples=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    material = tmp_path_factory.mktemp("material")
    write_material(material, SHAPE, {"sft": SFT, "dpr": DPR}, 2)
    return material


def policy(folder: Path) -> PolicySpec:
    # Attention in the open: the counter knows no fused one on a CPU.
    return PolicySpec(source=str(folder / "sft"), attention="eager")


class SecondStep(Callback):
    """Counts the operations of the second step; in the first a policy is looked at."""

    def __init__(self) -> None:
        self.counter = FlopSum()
        self.batch: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = batch
        if trainer.global_step == 1:
            self.counter.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            self.counter.__exit__(None, None, None)


def forward(rows: int, length: int, acted: int) -> float:
    """Operations of a pass over whole rows, with attention to all of a row."""
    return rows * length * SHAPE.forward(context=length, scored=acted / length)


def test_imitation_is_three_forward_passes(folder: Path, tmp_path: Path) -> None:
    data = DemonstrationDataModule(
        str(folder / "sft.jsonl"), batch_size=SFT.rows, cache_dir=str(tmp_path), validation=None
    )
    counted = SecondStep()
    quiet_trainer(tmp_path, max_steps=2, callbacks=[counted]).fit(SupervisedIRL(policy(folder)), data)
    expected = 3 * forward(SFT.rows, SFT.length, SFT.completion)
    # Nothing reads the state after the last token, which costs a little less in the last layer.
    assert counted.counter.total == pytest.approx(expected, rel=0.02)


PROMPTS = DPR.rows // DPR.samples


def prefill_shared(acted: int) -> float:
    """Operations of a pass in which a prompt is read once for its samples, but for its last token."""
    before = DPR.prompt - 1
    prompts = PROMPTS * before * SHAPE.forward(context=before, scored=0.0)
    rest = DPR.rows * (DPR.completion + 1) * SHAPE.forward(context=DPR.length, scored=0.0)
    return prompts + rest + 2 * SHAPE.head * acted


def test_learning_from_rollouts_is_three_forward_passes(folder: Path, tmp_path: Path) -> None:
    counted = reinforced(folder, tmp_path)
    acted = int(counted.batch.mask.sum())
    # Of the last layer only a prompt's keys and values are read: its queries and what follows have no gradient.
    width, before = SHAPE.hidden_size, DPR.prompt - 1
    unread = 2 * (2 * width**2 + 3 * width * SHAPE.intermediate_size) + 4 * width * before
    expected = 3 * prefill_shared(acted) - 2 * PROMPTS * before * unread
    assert counted.counter.total == pytest.approx(expected, rel=0.005)


def reinforced(folder: Path, tmp_path: Path) -> SecondStep:
    data = RewardDataModule(
        str(folder / "dpr.jsonl"),
        sft=str(folder / "sft"),
        references=[str(folder / "reference")],
        reward=RewardSpec(form={"log_ratio": 1.0}),
        sampling=SamplingOptions(max_new_tokens=DPR.completion),
        samples_per_prompt=DPR.samples,
        prompts_per_rollout=DPR.rows // DPR.samples,
        attention="eager",
    )
    module = DensePathReinforce(
        policy(folder), estimator="reinforce", credit=CreditSpec(discount=1.0, baseline="leave_one_out")
    )
    counted = SecondStep()
    quiet_trainer(tmp_path, max_steps=2, callbacks=[counted]).fit(module, data)
    return counted


def test_a_whole_step_of_reinforcement_reads_nothing_twice(folder: Path, tmp_path: Path) -> None:
    """Sampling once, each frozen model once, learning thrice."""
    with FlopSum() as counter:
        counted = reinforced(folder, tmp_path)
    acted = int(counted.batch.mask.sum())
    steps = 2
    read = PROMPTS * DPR.prompt * SHAPE.forward(context=DPR.prompt, scored=0.0)
    # The last token of an answer is not read again.
    late = DPR.prompt + DPR.completion / 2
    sampled = (acted - DPR.rows) * SHAPE.forward(context=late, scored=1.0) + 2 * PROMPTS * SHAPE.head
    assert counter.total <= 1.02 * steps * (read + sampled + 5 * prefill_shared(acted))


def test_decoding_costs_what_is_written(folder: Path) -> None:
    """Answers of many lengths: rows that have ended cost nothing."""
    model, _ = build_policy(policy(folder), trainable=False)
    prompts = [[5, 6, 7, 8]] * 4
    options, stop = SamplingOptions(max_new_tokens=60), list(range(2, 32))
    with FlopSum() as counter:
        result = sample(model, prompts, options, stop_tokens=stop, pad_token=0, num_samples=16)
    lengths = result.mask.sum(1)
    assert float(lengths.float().mean()) < 0.5 * int(lengths.max())
    context = 4 + float((lengths.double() ** 2).sum() / lengths.sum()) / 2
    expected = int(lengths.sum()) * SHAPE.forward(context=context, scored=1.0)
    assert counter.total <= 1.02 * expected
    padded = len(lengths) * int(lengths.max()) * SHAPE.forward(context=context, scored=1.0)
    assert counter.total < 0.6 * padded


def test_twice_the_demonstrations_cost_twice_as_much(tmp_path: Path, folder: Path) -> None:
    rows = [json.loads(line) for line in (folder / "sft.jsonl").read_text().splitlines()]
    costs = []
    for copies in (1, 2):
        file = tmp_path / f"{copies}.jsonl"
        copied = [{**row, "prompt": f"w{2 + copy} " + row["prompt"]} for copy in range(copies) for row in rows]
        file.write_text("".join(json.dumps(row) + "\n" for row in copied))
        data = DemonstrationDataModule(str(file), batch_size=SFT.rows, cache_dir=str(tmp_path), validation=None)
        with FlopSum() as counter:
            quiet_trainer(tmp_path, max_epochs=1).fit(SupervisedIRL(policy(folder)), data)
        costs.append(counter.total)
    assert costs[1] / costs[0] <= 2**1.05
