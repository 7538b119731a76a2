"""The DataModule and its loader: what a step sees, and what it sees again after a crash."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from transformers import PreTrainedTokenizerFast

from dpr_lightning.data import DemonstrationDataModule, PromptSet, TokenizedDataset
from dpr_lightning.data.over_length import TokenizationReport
from dpr_lightning.errors import InputError
from dpr_lightning.modules import SupervisedIRL
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, save_policy, special_tokens
from dpr_lightning.types import DemonstrationBatch
from tests.training import quiet_trainer

Writer = Callable[..., str]
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
Seen = list[tuple[list[int], float]]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory, chat_tokenizer: PreTrainedTokenizerFast) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    chat_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def make(tmp_path: Path, write_rows: Writer, tokenizer_folder: str) -> Callable[..., DemonstrationDataModule]:
    file = write_rows(
        {"prompt": f"What is {index % 40}?", "completion": "It is " + "7" * (1 + index % 9)} for index in range(50)
    )

    def build(**options: Any) -> DemonstrationDataModule:
        arguments = {
            "train": file,
            "tokenizer": tokenizer_folder,
            "batch_size": 4,
            "cache_dir": str(tmp_path / "cache"),
            "validation": None,
        }
        return DemonstrationDataModule(**{**arguments, **options})

    return build


class Recorder(lightning.LightningModule):
    """Notes which rows each training step sees."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Seen = []
        self.validated: list[int] = []
        self.folder = folder

    def training_step(self, batch: DemonstrationBatch, batch_idx: int) -> torch.Tensor:
        self.seen.append((batch.row.tolist(), float(batch.num_tokens)))
        return self.weight * batch.mask.sum() / batch.num_tokens

    def validation_step(self, batch: DemonstrationBatch, batch_idx: int) -> None:
        if batch.mask.any():
            self.validated += batch.row.tolist()

    def on_fit_end(self) -> None:
        if self.folder is not None:
            state = {"seen": self.seen, "validated": self.validated}
            (self.folder / f"rank{self.global_rank}.json").write_text(json.dumps(state))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def train(
    data: DemonstrationDataModule,
    folder: Path,
    *,
    module: Recorder | None = None,
    ckpt_path: str | None = None,
    **options: Any,
) -> Recorder:
    module = module if module is not None else Recorder()
    callbacks: list[Callback] = options.pop("callbacks", [])
    if ckpt_path is None:
        callbacks = [ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1), *callbacks]
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=options.pop("logger", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=ckpt_path is None,
        callbacks=callbacks,
        **{"max_epochs": 3, **options},
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module


def test_a_batch_is_what_the_file_says(make: Callable[..., DemonstrationDataModule]) -> None:
    data = make()
    data.prepare_data()
    data.setup("fit")
    tokenizer = data.tokenizer
    state = data.train_data
    assert state is not None
    batches = list(data.train_dataloader())
    assert sorted(row for batch in batches for row in batch.row.tolist()) == list(range(50))
    for batch in batches:
        assert batch.tokens.dtype == batch.row.dtype == torch.int64
        assert batch.mask.dtype == batch.terminated.dtype == torch.bool
        assert batch.num_tokens == batch.mask.sum()
        assert not batch.mask[:, 0].any()
        assert batch.terminated.all()
        for tokens, mask, row in zip(batch.tokens, batch.mask, batch.row.tolist(), strict=True):
            assert tokenizer.decode(tokens[mask]) == "It is " + "7" * (1 + row % 9) + "<|end|>"
            length = int(state.lengths[row])
            assert (tokens[length:] == tokenizer.pad_token_id).all()
            assert (tokens[:length] != tokenizer.pad_token_id).all()
            assert not mask[length:].any()


@pytest.mark.parametrize(
    "options", [{}, {"accumulate_grad_batches": 3}, {"limit_train_batches": 4}, {"limit_train_batches": 0.5}]
)
def test_a_killed_run_sees_what_the_uninterrupted_one_would_have_seen(
    make: Callable[..., DemonstrationDataModule], tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = train(make(batch_size=8), tmp_path / "whole", **options)
    steps = len(list((tmp_path / "whole").glob("*.ckpt")))
    accumulate = options.get("accumulate_grad_batches", 1)
    assert steps > 4
    # Every step of three epochs, the last ones of an epoch among them.
    for step in range(1, steps):
        resumed = train(
            make(batch_size=8),
            tmp_path / f"again{step}",
            ckpt_path=str(tmp_path / "whole" / f"step={step}.ckpt"),
            **options,
        )
        assert resumed.seen == whole.seen[-len(resumed.seen) :], f"after step {step}"
        assert len(resumed.seen) == len(whole.seen) - step * accumulate, f"after step {step}"


def test_epochs_differ_and_each_holds_every_row(make: Callable[..., DemonstrationDataModule], tmp_path: Path) -> None:
    seen = train(make(), tmp_path).seen
    third = len(seen) // 3
    epochs = [seen[start : start + third] for start in range(0, len(seen), third)]
    assert all(sorted(row for rows, _ in epoch for row in rows) == list(range(50)) for epoch in epochs)
    assert len({str(epoch) for epoch in epochs}) == 3


def test_accumulated_batches_carry_the_tokens_of_their_step(
    make: Callable[..., DemonstrationDataModule], tmp_path: Path
) -> None:
    data = make()
    seen = train(data, tmp_path, accumulate_grad_batches=3, max_epochs=1).seen
    assert data.train_data is not None
    acted = data.train_data.acted_tokens
    for start in range(0, len(seen), 3):
        step = seen[start : start + 3]
        assert {tokens for _, tokens in step} == {float(sum(int(acted[rows].sum()) for rows, _ in step))}


def test_accumulation_that_changes_is_refused(make: Callable[..., DemonstrationDataModule], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accumulate_grad_batches"):
        train(make(), tmp_path, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])


@pytest.mark.parametrize("shared", [True, False])
def test_validation_is_held_out_by_prompt(
    make: Callable[..., DemonstrationDataModule], tmp_path: Path, write_rows: Writer, shared: bool
) -> None:
    module = train(make(validation=0.25, validation_batch_size=3), tmp_path, max_epochs=1, num_sanity_val_steps=0)
    data = make(validation=0.25)
    data.setup()
    assert data.train_data is not None
    assert data.validation_data is not None
    assert sorted(module.validated) == list(range(len(data.validation_data)))
    assert len(data.train_data) + len(data.validation_data) == 50
    assert not set(data.train_data.prompt_hashes) & set(data.validation_data.prompt_hashes)
    held_out = data.held_out_rows()
    assert held_out is not None
    prompts = PromptSet.load(held_out[0], data.tokenizer)
    assert prompts.numbers == data.validation_data.numbers.tolist()
    assert all("completion" in metadata for metadata in prompts.metadata)
    other = write_rows([{"prompt": "What is 3?" if shared else "What is 99?", "completion": "x"}], "other.jsonl")
    if shared:
        with pytest.raises(InputError, match="training and validation share 1 prompt:"):
            make(validation=other).setup()
        make(validation=other, allow_overlap=True).setup()
    else:
        make(validation=other).setup()


def test_options_that_cannot_work_are_refused(make: Callable[..., DemonstrationDataModule], tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"validation": 1.5}, "share between 0 and 1"),
        ({"columns": {"question": "prompt"}}, "columns"),
        ({"limit": 0}, "limit"),
        ({"train": str(tmp_path / "rows.json")}, r"Did you mean .*rows\.jsonl"),
        ({"max_length": 12}, "50 of 50 rows|are longer than max_length=12"),
        ({"batch_size": None, "token_budget": 0}, "token_budget"),
        ({"token_budget": 100}, "exactly one of"),
        ({"tokenizer": str(tmp_path)}, "No tokenizer could be loaded"),
        ({"tokenizer": None}, "No tokenizer"),
    ]
    for options, says in cases:
        with pytest.raises(InputError, match=says):
            make(**options).train_dataloader()


def test_the_tokenizer_may_be_the_policys(
    make: Callable[..., DemonstrationDataModule], tmp_path: Path, tokenizer_folder: str
) -> None:
    from dpr_lightning.policies import PolicySpec

    module = Recorder()
    module.policy_spec = PolicySpec(source=tokenizer_folder)  # type: ignore[assignment]
    assert len(train(make(tokenizer=None), tmp_path, module=module, max_epochs=1).seen) == 13


def test_counts_are_printed_and_logged(
    make: Callable[..., DemonstrationDataModule], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path / "logs")
    caplog.set_level(logging.INFO)
    logging.getLogger("lightning.pytorch").propagate = True
    train(make(max_length=30, over_length="drop", validation=0.2), tmp_path, logger=logger, max_epochs=1)
    assert "dropped" in caplog.text
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "data/train/dropped" in text
    assert "data/validation/examples" in text


def test_without_a_cache_nothing_is_written(make: Callable[..., DemonstrationDataModule], tmp_path: Path) -> None:
    data = make(cache_dir=None)
    data.prepare_data()
    assert len(data.train_dataloader()) == 13
    assert not (tmp_path / "cache").exists()


def test_an_example_without_a_prompt_is_refused() -> None:
    arrays = {
        "tokens": torch.tensor([1, 2], dtype=torch.int32),
        "mask": torch.tensor([True, True]),
        "offsets": torch.tensor([0, 2]),
        "terminated": torch.tensor([True]),
        "number": torch.tensor([4]),
        "prompt_hash": torch.tensor([0]),
    }
    dataset = TokenizedDataset(arrays, "f.jsonl", TokenizationReport())
    with pytest.raises(InputError, match=r"f\.jsonl:4: the prompt has no tokens"):
        dataset.batch(dataset.index, 1.0, pad=0)


def test_a_selection_of_a_selection_holds_the_same_examples(make: Callable[..., DemonstrationDataModule]) -> None:
    data = make()
    data.setup()
    whole = data.train_data
    assert whole is not None
    part = whole.select(np.array([9, 5, 7])).select(np.array([2, 0]))
    assert [part.example(index) for index in (0, 1)] == [whole.example(7), whole.example(9)]
    assert part.where(0) == whole.where(7)
    assert part.acted_tokens.tolist() == [sum(whole.example(7).mask), sum(whole.example(9).mask)]


def test_a_blank_batch_counts_nothing(make: Callable[..., DemonstrationDataModule]) -> None:
    data = make()
    data.setup()
    assert data.train_data is not None
    batch = data.train_data.batch(data.train_data.index[:2], 5.0, pad=0, blank=True)
    assert not batch.mask.any()
    assert not batch.terminated.any()


@pytest.mark.slow
def test_two_processes_share_every_row_and_count_tokens_together(
    make: Callable[..., DemonstrationDataModule], tmp_path: Path
) -> None:
    data = make(batch_size=3, validation=0.3, validation_batch_size=1)
    options: dict[str, Any] = {"devices": 2, "strategy": "ddp_spawn", "accumulate_grad_batches": 2, "max_epochs": 1}
    train(data, tmp_path, module=Recorder(tmp_path), num_sanity_val_steps=0, **options)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    alone = make(validation=0.3)
    alone.setup()
    assert alone.train_data is not None
    assert alone.validation_data is not None
    rows = [row for rank in ranks for batch, _ in rank["seen"] for row in batch]
    assert sorted(rows) == list(range(len(alone.train_data)))
    assert sorted(row for rank in ranks for row in rank["validated"]) == list(range(len(alone.validation_data)))
    assert len(ranks[0]["seen"]) == len(ranks[1]["seen"])
    for start in range(0, len(ranks[0]["seen"]), 2):
        step = [batch for rank in ranks for batch in rank["seen"][start : start + 2]]
        acted = sum(int(alone.train_data.acted_tokens[batch].sum()) for batch, _ in step)
        assert {tokens for _, tokens in step} == {float(acted)}


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2)])
def test_a_policy_is_saved_with_the_format_it_learnt(
    lora: LoraSpec | None, write_rows: Writer, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    """Reinforcement learning, the preview and evaluation ask as the demonstrations did, and stop where they did."""
    template = "{% for turn in messages %}{{ turn['content'] + ('=' if turn['role'] == 'user' else ':') }}{% endfor %}"
    data = DemonstrationDataModule(
        write_rows([{"prompt": "1+1", "completion": "2"}] * 4),
        chat_template=template,
        end_of_turn=":",
        batch_size=4,
        cache_dir=None,
    )
    module = SupervisedIRL(PolicySpec(source=str(tiny_policy_folder), lora=lora))
    quiet_trainer(tmp_path, max_steps=1).fit(module, datamodule=data)
    folder = str(save_policy(module.policy, module.tokenizer, tmp_path / "policy", module.policy_spec))
    policy, tokenizer = build_policy(PolicySpec(source=folder), trainable=False)
    assert tokenizer.convert_ids_to_tokens(list(special_tokens(tokenizer, policy).stops)) == [tokenizer.eos_token, ":"]
    prompts = PromptSet.load(write_rows([{"prompt": "2+2"}], "prompts.jsonl"), tokenizer)
    assert tokenizer.decode(prompts.tokens[0]) == "2+2="
