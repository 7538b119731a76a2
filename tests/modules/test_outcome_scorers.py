"""Learned scores of responses: what they are of transformers' models, that policies learn them, and what is refused."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from dpr_lightning.data import RewardDataModule
from dpr_lightning.errors import InputError
from dpr_lightning.modules import CreditSpec, DensePathReinforce, KLSpec, RelativeRewardRegression, ScheduleSpec
from dpr_lightning.modules.rebel import RewardWeights
from dpr_lightning.policies import LoraSpec, PolicySpec, build_policy, load_tokenizer
from dpr_lightning.rewards import HeadScorer, OutcomeScorer, PolicyScorer, ScorerSpec
from dpr_lightning.rollouts import SamplingOptions
from dpr_lightning.types import RolloutBatch
from tests.heads import write_head
from tests.training import Metrics, write_adapter, write_prompts, write_weaker_policy

Trainers = Callable[..., lightning.Trainer]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tiny_policy_folder: Path) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("scorers")
    sft = str(tiny_policy_folder)
    return {
        "sft": sft,
        "policy": write_weaker_policy(sft, folder / "policy", seed=3),
        "reference": write_weaker_policy(sft, folder / "reference"),
        "head": write_head(sft, folder / "head"),
    }


def responses(count: int = 5) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, 40, (count, 10), generator=torch.Generator().manual_seed(1))
    position = torch.arange(10)
    mask = torch.stack([(position >= 3) & (position < 5 + row) for row in range(count)])
    return tokens, mask


def log_likelihood(folder: str, tokens: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x) by transformers alone."""
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder)(input_ids=tokens).logits.double()
    logprob = logits[:, :-1].log_softmax(-1).gather(2, tokens[:, 1:, None]).squeeze(2)
    return (logprob * mask[:, 1:]).sum(1)


@pytest.mark.parametrize("token_budget", [None, 11])
def test_scores_are_those_of_the_models(folders: dict[str, str], token_budget: int | None) -> None:
    tokens, mask = responses()
    sft = log_likelihood(folders["sft"], tokens, mask)
    scorers: dict[str, OutcomeScorer] = {
        "head": HeadScorer.load(folders["head"], load_tokenizer(folders["sft"])),
        "policy": PolicyScorer.load(folders["policy"], folders["sft"], 0.3),
    }
    last = (mask * torch.arange(10)).amax(1)
    head = AutoModelForSequenceClassification.from_pretrained(folders["head"])
    with torch.no_grad():
        outputs = [head(input_ids=row[None, : end + 1]).logits.item() for row, end in zip(tokens, last, strict=True)]
    expected = {
        "head": torch.tensor(outputs),
        "policy": 0.3 * (log_likelihood(folders["policy"], tokens, mask) - sft).float(),
    }
    for name, scorer in scorers.items():
        scores = scorer.score(tokens, mask, sft.float, token_budget)
        torch.testing.assert_close(scores, expected[name], atol=1e-5, rtol=1e-4)
        assert scores.std() > 0.01


class Recorded(lightning.Callback):
    """The rollouts of a run."""

    def __init__(self) -> None:
        self.rollouts: list[RolloutBatch] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.rollouts.append(module.last_rollout)


def data_of(folders: dict[str, str], prompts: str, scorer: ScorerSpec, **options: Any) -> RewardDataModule:
    return RewardDataModule(
        prompts,
        folders["sft"],
        [folders["reference"]],
        sampling=SamplingOptions(4),
        samples_per_prompt=4,
        prompts_per_rollout=8,
        scorer=scorer,
        **options,
    )


@pytest.mark.parametrize("algorithm", ["dpr", "rebel"])
@pytest.mark.parametrize("kind", ["head", "policy"])
def test_a_policy_learns_what_scores_high(
    algorithm: str, kind: str, folders: dict[str, str], trainer: Trainers, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "policy": PolicySpec(source=folders["sft"]),
        "optimizer": partial(torch.optim.Adam, lr=1e-2),
        "schedule": ScheduleSpec(kind="constant", warmup_fraction=0.0),
    }
    if algorithm == "dpr":
        credit = CreditSpec(level="sentence", baseline="leave_one_out", dense_weight=0.0, outcome_weight=4.0)
        module: Any = DensePathReinforce(**options, estimator="reinforce", credit=credit, kl=KLSpec(coefficient=0.01))
    else:
        module = RelativeRewardRegression(**options, credit=RewardWeights(0.0, 4.0), eta=1.0)
    data = data_of(
        folders,
        write_prompts(tmp_path / "prompts.jsonl", 8),
        ScorerSpec(**{kind: folders[kind]}),
        refresh_every=1 if algorithm == "dpr" else 2,
    )
    metrics, recorded = Metrics(), Recorded()
    trainer(max_steps=16, max_epochs=-1, callbacks=[metrics, recorded]).fit(module, datamodule=data)
    first = recorded.rollouts[0]
    assert first.outcome is not None
    assert data.scorer is not None
    expected = data.scorer.score(
        first.tokens, first.mask, lambda: log_likelihood(folders["sft"], first.tokens, first.mask).float()
    )
    torch.testing.assert_close(first.outcome, expected, atol=1e-5, rtol=1e-4)
    outcomes = [step["rollout/outcome"] for step in metrics.steps]
    assert outcomes[-1] > outcomes[0] + 0.5 * float(first.outcome.std())


def test_a_score_that_is_not_finite_names_its_row(folders: dict[str, str], trainer: Trainers, tmp_path: Path) -> None:
    damaged = write_head(folders["sft"], tmp_path / "head", weight=float("nan"))
    data = data_of(folders, write_prompts(tmp_path / "prompts.jsonl", 8), ScorerSpec(head=damaged))
    module = DensePathReinforce(PolicySpec(source=folders["sft"]), estimator="reinforce")
    with pytest.raises(InputError, match=r"gives nan to the response .* to .*prompts.jsonl:\d+, and to 32 responses"):
        trainer(max_steps=1).fit(module, datamodule=data)


def test_adapters_on_the_base_of_the_policy_share_it(tiny_policy_folder: Path, tmp_path: Path) -> None:
    sft = write_adapter(tiny_policy_folder, tmp_path / "sft", seed=1)
    scoring = str(write_adapter(tiny_policy_folder, tmp_path / "policy", seed=2))
    spec = PolicySpec(source=str(tiny_policy_folder), lora=LoraSpec(rank=2))
    model, _ = build_policy(spec)
    scorer = PolicyScorer.load(scoring, str(sft), policy=model, policy_spec=spec)
    assert scorer.frozen.is_shared
    tokens, mask = responses()
    alone = PolicyScorer.load(scoring, str(sft))
    zeros = partial(torch.zeros, len(tokens))
    torch.testing.assert_close(scorer.score(tokens, mask, zeros), alone.score(tokens, mask, zeros))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "neither of `head` and `policy`"),
        ({"head": "a", "policy": "b"}, "both of `head` and `policy`"),
        ({"policy": "b", "beta": 0.0}, "`data.scorer.beta` is 0"),
        ({"policy": "b", "beta": float("nan")}, "`data.scorer.beta` is nan"),
        ({"head": "a", "beta": 2.0}, "leave it out with `data.scorer.head`"),
    ],
)
def test_wrong_scorers(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ScorerSpec(**options)
