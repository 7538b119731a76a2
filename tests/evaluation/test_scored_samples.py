"""Fewer of the samples of a prompt are those that would have been sampled if no more had been sampled."""

from pathlib import Path

import torch
from torch.testing import assert_close

from dpr_lightning.data import PromptSet
from dpr_lightning.evaluation.scored_samples import sample_and_score
from dpr_lightning.evaluation.verifiers import verifier_named
from dpr_lightning.policies import load_tokenizer
from dpr_lightning.rewards import DenseReward
from dpr_lightning.rollouts import SamplingOptions
from tests.workspace import make_workspace


def test_the_first_samples_are_those_of_a_smaller_number(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path)
    tokenizer = load_tokenizer(workspace.sft)
    prompts = PromptSet.load(workspace.prompts, tokenizer, limit=5)
    reward = DenseReward.from_folders(workspace.sft, [workspace.reference])
    most, fewest = (
        sample_and_score(
            reward, tokenizer, prompts, SamplingOptions(8), verifier=verifier_named("numeric"), num_samples=count
        )
        for count in (6, 2)
    )
    ours = most.first(2)
    assert (ours.samples, ours.answers.texts, ours.answers.lengths) == (2, fewest.answers.texts, fewest.answers.lengths)
    assert ours.answers.scores == fewest.answers.scores
    assert ours.answers.rollouts.prompt.tolist() == [prompt for prompt in range(5) for _ in range(2)]
    for mine, theirs in zip(ours.answers.rollouts, fewest.answers.rollouts, strict=True):
        width = min(mine.shape[-1], theirs.shape[-1]) if mine.dim() > 1 else len(mine)
        assert_close(mine[..., :width], theirs[..., :width])
    for mine, theirs in zip(ours.scores, fewest.scores, strict=True):
        width = min(mine.shape[-1], theirs.shape[-1])
        assert_close(mine[..., :width], theirs[..., :width], atol=1e-4, rtol=1e-4)
        assert not mine[..., width:].to(torch.float32).any()
    assert most.first(9).samples == 6
